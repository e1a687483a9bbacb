"""Sentences of biomedical papers with entities that people have marked, from the NERO corpus.

The rows of `nero-nlp` 0.0.8 that were annotated by hand (`manualset`): 24,002 sentences. Entities come as strings
without their places: one that is found in its sentence, word by word, is marked there once, the longest first; later
repeats and what is not found stay unmarked. So the labels are real and noisy.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes.embedded.cache import cached_dataset
from recipes.embedded.models import package_folder

_VERSION = 1
_NUM_COLUMNS = 31
_SENTENCE, _PROCEDURE = 29, 30
_ENTITIES = ((8, 9), (16, 17))  # columns of a string and its class
_TYPES = {
    "anatomy": "AnatomicalPart BodyPart Cell CellComponent Chromosome OrganismPart Tissue",
    "chemical": "Atom Chemical Drug Ion Molecule NonProteinOrNucleicAcidChemical SmallMolecule",
    "disease": "Disease",
    "finding": "MedicalFinding",
    "gene_or_protein": (
        "AminoAcid AminoAcidPeptide Gene GeneOrProtein GeneOrProteinGroup NucleicAcid NucleicAcidSubstance "
        "PartOfProtein Protein"
    ),
    "organism": "Organism Person PersonGroup",
    "procedure": "MedicalDevice MedicalProcedure MedicalProcedureOrDevice",
    "quantity": "Duration Measurement Quantity QuantityOrMeasure QuantityOrMeasurement Time TimePoint",
}
"""NERO's classes, merged; others (Process, ResearchActivity, ...) are left out."""


def biomedical_entities() -> str:
    """A folder with the dataset: columns `tokens` and `tags` (lists), `sentence`.

    Raises:
        UserError: if `nero-nlp` is not installed.
    """
    file = package_folder("NERO", "nero-nlp", "--dataset", extra="recipes") / "annotation_results.txt"
    return cached_dataset(f"biomedical-entities-v{_VERSION}", lambda: read_entities(file), row_group_size=1000)


def read_entities(file: Path) -> Iterator[dict[str, object]]:
    """The rows, from NERO's file of annotations."""
    type_of = {name: merged for merged, names in _TYPES.items() for name in names.split()}
    entities: dict[str, dict[str, str]] = defaultdict(dict)
    for line in file.read_bytes().split(b"\n"):  # texts hold other line ends
        fields = [field.strip() for field in line.decode("utf-8", "replace").split("\t")]
        if len(fields) != _NUM_COLUMNS or not fields[_PROCEDURE].startswith("manualset"):
            continue
        found = entities[fields[_SENTENCE]]
        for text, name in _ENTITIES:
            if fields[name] in type_of:
                found.setdefault(fields[text], type_of[fields[name]])
    for sentence, of_sentence in entities.items():
        words = words_of(sentence)
        if words:
            yield {"tokens": words, "tags": tags_of(words, of_sentence), "sentence": sentence}


def words_of(text: str) -> list[str]:
    """Words and signs."""
    return re.findall(r"\w+|[^\w\s]", text)


def tags_of(words: Sequence[str], entities: dict[str, str]) -> list[str]:
    """The tags in the scheme BIO of words among which entities stand, by their texts."""
    lower = [word.lower() for word in words]
    tags = ["O"] * len(words)
    for text, name in sorted(entities.items(), key=lambda entity: (-len(entity[0]), entity)):
        wanted = [word.lower() for word in words_of(text)]
        for start in range(len(words) - len(wanted) + 1 if wanted else 0):
            end = start + len(wanted)
            if lower[start:end] == wanted and set(tags[start:end]) == {"O"}:
                tags[start:end] = [f"B-{name}", *[f"I-{name}"] * (len(wanted) - 1)]
                break
    return tags
