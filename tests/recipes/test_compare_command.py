"""`hf-accum compare`: a model that learned is better than one that did not, and the rule says so."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_accum.cli.main import main

Recipe = Callable[..., Path]


def test_a_run_that_learned_is_better_and_the_rule_decides_the_status(
    recipe: Recipe, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = recipe(max_steps=1, learning_rate=1e-6)
    better = recipe(num_epochs=6, effective_batch_size=16, learning_rate=0.01)
    found, rows = tmp_path / "found.json", notes / "train-2.jsonl"
    how = [f"--dataset={rows}", "--group_column=text"]
    main(["compare", str(worse), str(better), *how, "--require=better:accuracy", f"--output={found}"])
    assert "better:accuracy: kept" in capsys.readouterr().out
    written = json.loads(found.read_text())
    assert written["is_kept"] is True
    accuracy = written["figures"]["accuracy"]
    assert accuracy["second"] > accuracy["first"]
    assert accuracy["interval_of_difference"][0] > 0
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(better), str(worse), *how, "--require=not_worse:accuracy:0.05"])
    assert ended.value.code == 1
    assert "not_worse:accuracy:0.05: not kept" in capsys.readouterr().out
    for wrong, said in (
        (["--require=best"], "--require best: has to be"),
        (["--output=no/such/file"], "has to be in a folder that is there"),
        (["--text_column=other"], "no column 'other'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(worse), str(better), *how, *wrong])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
