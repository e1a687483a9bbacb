"""Descriptions of diagnoses and the chapters of ICD-10-CM that they belong to.

The classification is that of the National Center for Health Statistics (public domain, release of April 2026), as the
package `simple-icd-10-cm` 1.5.0 carries it. Held out are whole categories (the codes that begin with the same three
characters), since their descriptions are worded alike.
"""

import random
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from recipes.embedded.cache import cached_splits
from recipes.embedded.models import package_folder

_VERSION = 1
_SHARE_HELD_OUT = 0.2
_MOST_OF_CATEGORY, _MOST_OF_CHAPTER, _FEWEST_OF_CHAPTER = 8, 450, 150


@dataclass(frozen=True)
class Diagnosis:
    """A code that has none below it, with its description and its chapter."""

    code: str
    description: str
    chapter: str

    @property
    def category(self) -> str:
        """The first three characters of the code."""
        return self.code[:3]


def icd_chapters(salt: str = "a") -> str:
    """A folder with the dataset: splits `train` and `test`, columns `id`, `text`, `chapter`, `category`.

    8,133 descriptions of 21 chapters. A fifth of the categories are in `test`, by a hash of salt and category.

    Raises:
        UserError: if `simple-icd-10-cm` is not installed.
    """
    package_folder("simple_icd_10_cm", "simple-icd-10-cm", "--dataset")

    def read() -> dict[str, list[dict[str, object]]]:
        splits: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
        for one in chosen(diagnoses()):
            row: dict[str, object] = {"id": one.code, "text": one.description}
            row |= {"chapter": one.chapter, "category": one.category}
            splits["test" if is_held_out(one.category, salt) else "train"].append(row)
        return splits

    return cached_splits(f"icd-chapters-{salt}-v{_VERSION}", read, row_group_size=500)


def is_held_out(category: str, salt: str) -> bool:
    """Whether a category is in the test split: by the first 48 bits of a hash."""
    return int(sha256(f"{salt}{category}".encode()).hexdigest()[:12], 16) / 16**12 < _SHARE_HELD_OUT


def diagnoses() -> Iterator[Diagnosis]:
    """All that the package has, in its order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it reads its files by functions that Python deprecates
        import simple_icd_10_cm as icd

    for code in icd.get_all_codes(with_dots=True):
        if icd.is_leaf(code):
            chapter = icd.get_description(icd.get_ancestors(code)[-1])
            yield Diagnosis(code, icd.get_description(code), chapter.rpartition(" (")[0])


def chosen(found: Iterator[Diagnosis]) -> Iterator[Diagnosis]:
    """A sample, in an order of chance: each description once, few of a category, no chapter large or tiny."""
    shuffled = list(found)
    random.Random(0).shuffle(shuffled)
    texts: set[str] = set()
    of_category: Counter[str] = Counter()
    of_chapter: Counter[str] = Counter()
    kept = []
    for diagnosis in shuffled:
        if (
            diagnosis.description in texts
            or of_category[diagnosis.category] == _MOST_OF_CATEGORY
            or of_chapter[diagnosis.chapter] == _MOST_OF_CHAPTER
        ):
            continue
        texts.add(diagnosis.description)
        of_category[diagnosis.category] += 1
        of_chapter[diagnosis.chapter] += 1
        kept.append(diagnosis)
    return (diagnosis for diagnosis in kept if of_chapter[diagnosis.chapter] >= _FEWEST_OF_CHAPTER)
