"""How a window is executed changes nothing: micro-batch size and ranks give the same run."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from launching import launch
from run_files import logits_of, metrics_of

from hf_accum.distributed.ranks import OneRank
from recipes.clinical_classification import ClinicalClassificationConfig, open_data
from recipes.embedded.models import minilm
from recipes.embedded.synopses import clinical_synopses


def assert_same_run(runs: list[Path], num_labels: int, texts: list[str], max_length: int) -> None:
    """The same examples at each step, the same losses, the same adapter."""
    first = metrics_of(runs[0])
    reference = logits_of(runs[0], texts, num_labels, max_length)
    for run in runs[1:]:
        other = metrics_of(run)
        assert [m["window_digest"] for m in other] == [m["window_digest"] for m in first]
        for name in ("num_examples", "num_items", "num_tokens", "learning_rate", "epoch", "step"):
            assert [m[name] for m in other] == [m[name] for m in first]
        for name in ("loss", "grad_norm"):
            assert [m[name] for m in other] == pytest.approx([m[name] for m in first], rel=1e-4)
        difference = (logits_of(run, texts, num_labels, max_length) - reference).abs().max()
        assert float(difference) <= 1e-3


@pytest.mark.by_hand
def test_the_main_job_trains_the_same_however_its_windows_are_cut(tmp_path: Path) -> None:
    """MiniLM on the clinical synopses, 6 steps, on one process and on two; auto cuts by what it learns meanwhile."""
    check_main_job(tmp_path, [(1, 1), (1, "auto"), (2, "auto")], num_steps=6)


@pytest.mark.by_hand
def test_the_main_job_trains_the_same_at_every_micro_batch_size(tmp_path: Path) -> None:
    """The same, 20 steps, at eight more."""
    check_main_job(tmp_path, list(itertools.product((1, 2), (1, 3, 16, 64))), num_steps=20)


def check_main_job(tmp_path: Path, how: list[tuple[int, int | str]], num_steps: int) -> None:
    runs = []
    for num_processes, size in how:
        folder = tmp_path / f"{num_processes}-{size}"
        done = launch(
            *("-m", "recipes.clinical_classification", "--dropout=0", f"--max_steps={num_steps}", "--max_length=32"),
            *("--dataset=embedded:synopses", "--eval_fraction=0.02", "--num_epochs=1"),
            *("--effective_batch_size=64", f"--micro_batch_size={size}", f"--output_dir={folder}"),
            num_processes=num_processes,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        runs.append(folder)
    rows = pq.read_table(clinical_synopses()).to_pylist()
    data = open_data(ClinicalClassificationConfig(dataset="embedded:synopses", eval_fraction=0.02), OneRank())
    texts = [row["text"] for row in rows if data.is_held_out(row, True)]
    assert len(texts) > 50
    assert_same_run(runs, num_labels=4, texts=texts, max_length=32)


@pytest.mark.by_hand
def test_in_bf16_the_main_job_has_the_same_losses_however_its_windows_are_cut(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To 1 %, 12 steps of 16, at most 1, 4 and 16 at once; and those of float32, and of frozen weights in float32.

    AdamW makes nearly the same of a gradient that is wrong by a factor: so the norms are compared too.
    """

    def train(precision: str, frozen_dtype: str, size: int) -> list[dict[str, Any]]:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        folder = recipe(
            model=minilm(),
            dataset=clinical_synopses(),
            label_column="inheritance",
            group_column="disease",
            eval_fraction=0.005,
            max_length=32,
            dropout=0,
            max_steps=12,
            learning_rate=1e-3,
            effective_batch_size=16,
            micro_batch_size=size,
            frozen_dtype=frozen_dtype,
            full_determinism="true",  # the cut depends on no time
        )
        return metrics_of(folder)

    try:
        in_float32 = train("no", "auto", 4)
        assert "precision no\n" in capsys.readouterr().out
        cuts = [train("bf16", "auto", size) for size in (1, 4, 16)]
        assert capsys.readouterr().out.count("precision bf16, frozen weights in bfloat16\n") == 3
        float32_weights = train("bf16", "float32", 4)
        assert "precision bf16\n" in capsys.readouterr().out
    finally:
        torch.use_deterministic_algorithms(False)
    num_pieces = [sum(m["num_micro_batches"] for m in run) for run in cuts]
    assert num_pieces[0] == 12 * 16 > 2 * num_pieces[1] > 4 * num_pieces[2]
    first = [m["loss"] for m in in_float32]
    assert min(first) < 0.9 * first[0]  # it learns, so that the steps before count
    for run in (*cuts, float32_weights):
        assert [m["window_digest"] for m in run] == [m["window_digest"] for m in in_float32]
        assert [m["loss"] for m in run] != first
    for one, other in itertools.combinations((in_float32, *cuts, float32_weights), 2):
        assert [m["loss"] for m in one] == pytest.approx([m["loss"] for m in other], rel=0.01)
        assert [m["grad_norm"] for m in one] == pytest.approx([m["grad_norm"] for m in other], rel=0.02)
