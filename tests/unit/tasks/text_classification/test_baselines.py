"""The baselines of a run: the rows of its own split, and an encoder as it was before the training."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import make_tokenizer, save_base
from transformers import AutoModel

from hf_accum.accumulation.losses import CrossEntropy
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.held_out import by_hash
from hf_accum.data.source import Source
from hf_accum.data.split import SplitData
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.text_classification.baselines import FILE, FrozenEncoder, compare_with_baselines, sample_of
from hf_accum.tasks.text_classification.task import TextClassification

ROWS = [
    {"text": f"w{i % 30} {'w31' if i % 2 else 'w32'}", "label": "yes" if i % 2 else "no", "p": i} for i in range(200)
]
LABELS = LabelColumn("label", "single_label_classification", ("no", "yes"))


def make_task() -> TextClassification:
    return TextClassification("text", LABELS, CrossEntropy(None, 0.0), make_tokenizer(), 8)


def make_data() -> SplitData:
    rows: list[Any] = [*ROWS, {"text": "", "label": "no", "p": 0}]
    source = Source(("rows",), lambda shard, start: iter(list(enumerate(rows))[start:]), {})
    return SplitData(source=source, eval_source=source, group_column="p", eval_fraction=0.3, held_out=by_hash(0.3))


def test_both_sides_are_those_of_the_split() -> None:
    data, task = make_data(), make_task()
    train, held_out = (sample_of(data, task, held_out=side) for side in (False, True))
    assert Counter([*train.texts, *held_out.texts]) == Counter(row["text"] for row in ROWS)
    expected = [row for row in ROWS if data.is_held_out(row, False)]
    assert list(held_out.texts) == [row["text"] for row in expected]
    assert held_out.targets.tolist() == [("no", "yes").index(row["label"]) for row in expected]
    assert not {*train.groups} & {*held_out.groups}


def test_vectors_are_the_means_of_the_last_states(tmp_path: Path) -> None:
    folder = save_base(tmp_path, "bert")
    texts = ["w1 w2 w3", "w4", "w1 w2"]
    vectors = FrozenEncoder(folder, make_task(), RecipeConfig(max_length=8)).vectors_of(texts)
    model = AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            states = model(
                **make_tokenizer()(text, return_tensors="pt", return_token_type_ids=False)
            ).last_hidden_state
        np.testing.assert_allclose(vector, states[0].mean(0).numpy(), rtol=1e-4, atol=1e-5)


def test_they_are_shown_beside_the_run_and_written(tmp_path: Path, capsys: Any) -> None:
    config = RecipeConfig(output_dir=str(tmp_path), max_length=8)
    figures = {"accuracy": 0.5, "macro_f1": 0.25, "loss": 1.0}
    found = compare_with_baselines(config, make_data(), make_task(), save_base(tmp_path / "base", "bert"), figures)
    assert found["TF-IDF, logistic regression"] == {"accuracy": 1.0, "macro_f1": 1.0}
    assert json.loads((tmp_path / FILE).read_text()) == found
    shown = capsys.readouterr().out
    assert "this run" in shown
    assert "0.250" in shown
