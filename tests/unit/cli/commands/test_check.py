"""The command `hf-accum check`: what it takes, shows, writes, and ends with."""

import json
import sys
from pathlib import Path

import pytest
from tiny import make_tokenizer, save_base

from hf_accum.cli.main import main

pytestmark = pytest.mark.usefixtures("no_network")

PROJECT = """
import planted


def right():
    return planted.encoder(), planted.summed, planted.batches()


def wrong():
    return {"model": planted.encoder(), "summed_loss": planted.mean, "batches": planted.batches()}


def random():
    return planted.encoder(planted.nn.Dropout(0.3)), planted.summed, planted.batches()


def nothing():
    return 1


def more():
    return {**wrong(), "size": 3}
"""


def status(*arguments: str) -> int:
    try:
        main(["check", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "ones_own", raising=False)
    (tmp_path / "ones_own.py").write_text(PROJECT)
    return tmp_path


def test_a_function_of_one_s_own_project_is_checked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("ones_own:right") == 0
    assert "nothing found: the gradient does not depend on the cut" in capsys.readouterr().out
    assert status("ones_own:wrong", "--json", "found.json") == 1
    assert "fault: a mean in the place of a sum" in capsys.readouterr().out
    written = json.loads((project / "found.json").read_text())
    assert (written["ok"], written["findings"][0]["kind"]) == (False, "mean_of_means")


def test_a_warning_ends_with_another_status_where_that_is_asked_for(project: Path) -> None:
    assert status("ones_own:random") == 0
    assert status("ones_own:random", "--strict") == 1


def test_a_failure_of_the_command_ends_with_status_1_and_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hf_accum.gradient_check import check

    def fails(*args: object, **kwargs: object) -> None:
        raise AssertionError("planted")

    monkeypatch.setattr(check, "check", fails)
    assert status("ones_own:right", "--json", "found.json") == 1
    assert "error: AssertionError: planted (nothing that is checked for: " in capsys.readouterr().err
    assert not (project / "found.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "has to be given one of: a recipe, a module:function, "),
        (["a", "--head", "causal_lm"], "has to be given one of: "),
        (["none:f"], "no module none in "),
        (["ones_own:none"], "ones_own has no function 'none'"),
        (["ones_own:nothing"], "has to return (model, summed_loss, batches)"),
        (["ones_own:more"], "is not what `check` takes"),
        (["ones_own:right", "--model", "m"], "--model: says nothing here"),
        (["ones_own:right", "--json", "no/where.json"], "has to be in a folder that is there"),
        (["none"], "no recipe of that name"),
        (["--head", "causal_lm"], "has to go with --model"),
        (["--head", "none", "--model", "m"], "--head none: has to be of sequence_classification, "),
        (["--head", "causal_lm", "--model", "m", "--seed=1"], "--seed=1: says nothing beside --head"),
        (["clinical_ner", "--no_such_flag", "1"], "no_such_flag"),
    ],
)
def test_a_mistake_of_the_user_ends_with_status_2(
    project: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*arguments) == 2
    assert said in capsys.readouterr().err


def test_the_own_loss_of_a_head_is_shown_beside_the_trainer_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_base(tmp_path / "model", "bert", make_tokenizer())
    file = tmp_path / "found.json"
    assert status("--model", folder, "--head", "sequence_classification", "--json", str(file)) == 1
    output = capsys.readouterr().out
    assert "fault: the model's own loss ignores the count that it is given" in output
    trainer, plain = json.loads(file.read_text())["stock"]
    assert trainer["norm_ratio"] == pytest.approx(8.0)
    assert plain["norm_ratio"] == pytest.approx(1.0)
    assert "8.000" in output
