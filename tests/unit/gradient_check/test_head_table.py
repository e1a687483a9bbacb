"""The table of heads: how a row is made, and whether the guide still says what is so."""

import importlib.metadata
import re
from pathlib import Path

import pytest

from hf_accum.gradient_check.head_table import HeadRow, as_markdown, classes_of, head_row
from hf_accum.gradient_check.heads import HEADS

GUIDE = (Path(__file__).parents[3] / "recipes" / "guides" / "heads.md").read_text()
SLOW = {
    "sequence_classification": ("distilbert", "llama"),
    "token_classification": ("electra",),
    "question_answering": ("bert",),
    "masked_lm": ("bert",),
    "causal_lm": ("gpt2", "llama"),
    "multiple_choice": ("roberta",),
    "image_classification": ("vit", "resnet"),
    "audio_classification": ("wav2vec2",),
    "semantic_segmentation": ("segformer",),
}


def test_a_row_says_what_was_found_or_why_nothing_was() -> None:
    row = HeadRow("causal_lm", "MineForCausalLM", ("count_ignored", "padding"), 8.0, None)
    said = "no: a mean, whatever the count; no: padding leaks"
    assert row.as_markdown() == f"| MineForCausalLM | {said} | 8.000 | - |"
    failed = HeadRow("causal_lm", "OtherForCausalLM", failed="ValueError: `no`")
    text = as_markdown([row, failed], "make it")
    assert "\nmake it\n" in text
    assert "\n## causal_lm\n" in text
    assert "- OtherForCausalLM (causal_lm): `ValueError: no`" in text
    assert "## masked_lm" not in text
    assert head_row("causal_lm", "bert", "NoSuchClass").failed.startswith("AttributeError")


def test_the_classes_of_a_head_are_those_of_transformers() -> None:
    assert classes_of("masked_lm")["bert"] == "BertForMaskedLM"
    assert all(classes_of(head) for head in HEADS)


def test_the_guide_names_versions_and_each_class_that_is_tried() -> None:
    assert len(re.findall(r"^\| \w+For\w+ \|", GUIDE, re.MULTILINE)) >= 40
    for head in HEADS:
        for name in classes_of(head).values():
            assert f"| {name} |" in GUIDE or f"- {name} ({head}): " in GUIDE, name


@pytest.mark.parametrize(
    ("head", "architecture"),
    [
        ("sequence_classification", "bert"),
        *(
            pytest.param(head, architecture, marks=pytest.mark.slow)
            for head, architectures in SLOW.items()
            for architecture in architectures
        ),
    ],
)
def test_the_guide_says_what_is_found_again(head: str, architecture: str) -> None:
    if f"transformers {importlib.metadata.version('transformers')}," not in GUIDE:
        pytest.skip("the guide is of another version of transformers")
    row = head_row(head, architecture, classes_of(head)[architecture])
    assert row.as_markdown() in GUIDE.partition(f"## {head}\n")[2].partition("\n## ")[0]
