"""Texts whose label is told behind what goes through the model at once: windows find it, truncation cannot."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from run_files import metrics_of

Recipe = Callable[..., Path]


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """For each label 60 texts of 90 to 150 words: all drawn alike, but those behind the 70th."""
    draw = random.Random(0)
    rows = []
    for number in range(120):
        label = ["eye", "heart"][number % 2]
        words = draw.choices(["pain", "fever", "cough", "rash"], k=draw.randint(90, 150))
        words[70:] = [label if draw.random() < 0.3 else word for word in words[70:]]
        rows.append({"text": " ".join(words), "label": label, "patient": number})
    file = tmp_path / "letters.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.slow
def test_windows_find_what_truncation_loses(
    recipe: Recipe, letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"dataset": letters, "group_column": "patient", "eval_fraction": 0.3, "max_steps": 20, "num_epochs": 9}
    how |= {"learning_rate": 0.01, "lora.rank": 0, "effective_batch_size": 16, "seed": 1}
    windows = {"long_texts": "windows", "window_overlap": 8}
    truncated = recipe(**how)
    assert "(--max_length)" in capsys.readouterr().out
    whole = recipe(**how, **windows, pooling="mean", window_pooling="attention")
    few = recipe(**how, **windows, max_windows=2, window_pooling="max")
    said = capsys.readouterr().out
    assert said.count("truncated: ") == 1
    assert "(--max_windows)" in said
    accuracy = {
        folder: json.loads((folder / "evaluation.json").read_text())["accuracy"] for folder in (truncated, whole)
    }
    assert accuracy[truncated] < 0.75
    assert accuracy[whole] > 0.95
    assert [m["num_items"] for m in metrics_of(whole)] == [m["num_examples"] for m in metrics_of(truncated)]
    assert [m["window_digest"] for m in metrics_of(whole)] == [m["window_digest"] for m in metrics_of(few)]
    tokens = [sum(m["num_tokens"] for m in metrics_of(folder)) for folder in (truncated, few, whole)]
    assert tokens == sorted(tokens)


@pytest.mark.slow
def test_a_run_is_the_same_for_any_cut(recipe: Recipe, letters: Path) -> None:
    losses = []
    for size in (1, 50):
        folder = recipe(
            dataset=letters,
            group_column="patient",
            max_steps=4,
            effective_batch_size=8,
            dropout=0,
            long_texts="windows",
            window_overlap=8,
            micro_batch_size=size,
        )
        losses.append([m["loss"] for m in metrics_of(folder)])
        figures = json.loads((folder / "evaluation.json").read_text())
        losses[-1].append(figures["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_head_of_the_model_s_own_kind_scores_no_windows(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        recipe(pooling="cls", long_texts="windows", window_overlap=8, window_pooling="attention")
    assert "--window_pooling attention: has to go with --pooling mean or max" in capsys.readouterr().err
