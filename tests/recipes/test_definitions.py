"""The embedded instructions: what is read of the ontology's file."""

from pathlib import Path

from recipes.embedded.definitions import read_definitions

OBO = r"""format-version: 1.2

[Term]
id: HP:0000001
name: All

[Term]
id: HP:0000508
name: Ptosis
def: "The upper eyelid droops.  Also called \"blepharoptosis\"." [ORCID:1]
is_a: HP:0012373 ! Abnormal eye physiology
is_a: HP:0000492 ! Abnormal eyelid morphology

[Term]
id: HP:0000000
name: Old
def: "Old." [ORCID:1]
is_obsolete: true

[Typedef]
id: part_of
def: "No term." []
"""


def test_terms_with_a_definition_are_instructions(tmp_path: Path) -> None:
    (tmp_path / "hp.obo").write_text(OBO)
    assert list(read_definitions(tmp_path / "hp.obo")) == [
        {
            "id": "HP:0000508",
            "term": "Ptosis",
            "family": "HP:0012373",
            "prompt": "Define the clinical term: Ptosis",
            "response": 'The upper eyelid droops. Also called "blepharoptosis".',
        }
    ]
