"""Pairs of texts: token types where the model has them, something between the two, and a place for each."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONFIGS, make_pair_tokenizer
from tokenizers import processors
from transformers import AutoModelForSequenceClassification

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import BadRow
from hf_accum.distributed.ranks import OneRank
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.text_classification.data import LabelledTexts, open_labelled_texts
from hf_accum.tasks.text_classification.pairs import read_pairs, reads_token_types, texts_of
from hf_accum.tasks.text_classification.task import TextClassification, build_objective
from hf_accum.tasks.text_template import TextTemplate


def make_model(architecture: str, **more: Any) -> Any:
    config = copy.deepcopy(CONFIGS[architecture])
    config.update(more)
    return AutoModelForSequenceClassification.from_config(config)


def make_task(tokenizer: Any) -> TextClassification:
    labels = LabelColumn("label", "single_label_classification", ("no", "yes"))
    return TextClassification("a", labels, build_objective(labels), tokenizer, 16, pair_column="b")


@pytest.mark.parametrize(
    ("architecture", "more", "expected"),
    [
        ("bert", {}, True),
        ("electra", {}, True),
        ("bert", {"type_vocab_size": 1}, False),
        ("deberta", {"type_vocab_size": 0}, False),
        ("distilbert", {}, False),
        ("modernbert", {}, False),
        ("llama", {}, False),
    ],
)
def test_token_types_are_there_where_the_model_has_them(
    architecture: str, more: dict[str, Any], expected: bool
) -> None:
    """The made-up batch of the tuner has what the run's has, and the model takes both."""
    model, tokenizer = make_model(architecture, **more).eval(), make_pair_tokenizer()
    assert reads_token_types(model) == expected
    read_pairs(tokenizer, model, 16)
    task = make_task(tokenizer)
    rows = [{"a": "w1 w2", "b": "w3", "label": "no"}, {"a": "w1", "b": "w2", "label": "yes"}]
    inputs, labels = task.collate(task.encode([(f"0:{i}", task.prepare(row)) for i, row in enumerate(rows)]))
    for of in (task, make_task(None)):
        made_up, _ = of.dummy_batch(model, 2, 6, torch.device("cpu"))
        assert (
            set(made_up)
            == set(inputs)
            == {"input_ids", "attention_mask"} | ({"token_type_ids"} if expected else set())
        )
        assert {name: tensor.shape for name, tensor in made_up.items()} == {n: t.shape for n, t in inputs.items()}
        assert task.summed_loss(model, (made_up, labels)).isfinite()
    assert task.summed_loss(model, (inputs, labels)).isfinite()


@pytest.mark.parametrize(("architecture", "given"), [("bert", True), ("distilbert", False)])
def test_what_is_saved_gives_the_model_what_it_takes(tmp_path: Path, architecture: str, given: bool) -> None:
    tokenizer, model = make_pair_tokenizer(), make_model(architecture)
    read_pairs(tokenizer, model, 16)
    tokenizer.save_pretrained(str(tmp_path))
    inputs: Any = load_tokenizer(str(tmp_path))("w1", "w2", return_tensors="pt")
    assert ("token_type_ids" in inputs) == given
    assert model(**inputs).logits.shape == (1, model.config.num_labels)


def test_a_tokenizer_with_nothing_between_two_texts_is_refused() -> None:
    tokenizer: Any = make_pair_tokenizer()
    model = make_model("bert")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(ValueError, match=r"puts no token between two texts.*`text_template`"):
        read_pairs(tokenizer, model, 16)


def test_each_text_needs_a_place() -> None:
    read_pairs(make_pair_tokenizer(), make_model("bert"), 5)
    with pytest.raises(ValueError, match="`max_length` 4: has to be at least 5"):
        read_pairs(make_pair_tokenizer(), make_model("bert"), 4)


def test_both_texts_have_to_be_there() -> None:
    assert texts_of({"a": "x", "b": "y"}, "a", None) == "x"
    assert texts_of({"a": "x", "b": "y"}, "a", "b") == ("x", "y")
    for row, field in (({"a": "x"}, "b"), ({"a": "x", "b": None}, "b"), ({"a": "", "b": "y"}, "a")):
        with pytest.raises(BadRow) as bad:
            texts_of(row, "a", "b")
        assert bad.value.field == field


def opened(folder: Path, rows: list[dict[str, Any]], **how: Any) -> LabelledTexts:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = {"label_column": "label", "label_names": (), "label_separator": "|", "needs_counts": False}
    plain |= {"problem": "single_label_classification"}
    return open_labelled_texts(str(file), OneRank(), RecipeConfig(eval_fraction=0.3), **plain | how)


def sides_of(data: LabelledTexts) -> dict[str, set[bool]]:
    """Of each text on which sides of the split it is."""
    found: dict[str, set[bool]] = {}
    for _, row in data.source.read(0, 0):
        assert not isinstance(row, BadRow)
        found.setdefault(row[data.group_column], set()).add(data.is_held_out(row, of_eval_source=False))
    return found


def test_equal_pairs_are_on_one_side_and_both_texts_count_as_content(tmp_path: Path) -> None:
    rows = [{"a": f"w{i % 20}", "b": f"w{i % 40}", "label": i % 2} for i in range(80)]
    how = {"text_column": "a", "group_column": "a", "pair_column": "b"}
    data = opened(tmp_path, rows, **how)
    assert all(len(sides) == 1 for sides in sides_of(data).values())
    digest = data.digest
    assert opened(tmp_path, [*rows[:-1], {**rows[-1], "b": "w7"}], **how).digest != digest


def test_texts_of_a_template_are_split_by_and_empty_ones_are_counted(tmp_path: Path) -> None:
    rows = [{"age": None if i % 4 == 0 else i % 20, "note": f"w{i % 20}", "label": i % 2} for i in range(80)]
    template = TextTemplate("Age {age}: {note}", "empty")
    how = {"text_column": template.template, "group_column": template.template}
    data = opened(tmp_path, rows, template=template, **how)
    sides = sides_of(data)
    assert set(sides) == {f"Age {'' if i % 4 == 0 else i}: w{i}" for i in range(20)}
    assert all(len(found) == 1 for found in sides.values())
    assert len(set.union(*sides.values())) == 2
    assert data.num_empty == {"age": 20}
    assert "20 rows have nothing in the column 'age': the template is left empty there" in data.notes
    how["group_column"] = "note"
    assert set(sides_of(opened(tmp_path, rows, template=template, **how))) == {f"w{i}" for i in range(20)}
