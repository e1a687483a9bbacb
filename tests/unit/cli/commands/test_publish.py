"""`hf-accum publish`: its flags, and what it says."""

from pathlib import Path

import pytest
from card_runs import make_run

from hf_accum.cli.main import main
from hf_accum.run.card import write_card


def test_a_dry_run_writes_the_folder_and_says_what_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    write_card(run)
    main(["publish", str(run), "me/model", "--dry_run", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "not uploaded" in said
    assert "stays here: config.yaml, evaluation.json, run.json" in said
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_mistake_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for repo, flags in (
        ("me/model", []),
        ("my model", ["--dry_run", str(tmp_path / "out")]),
        ("me/model", ["--no_such_flag"]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["publish", str(tmp_path / "none"), repo, *flags])
        assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "no flag of hf-accum publish" in said
    assert "my model: has to be the id of a repository" in said
