"""Commands of one process, started in several."""

import pytest

from hf_accum.cli.main import main


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "run", "out"],
        ["merge", "run", "out"],
        ["publish", "run", "me/model"],
        ["report", "run"],
        ["serve", "run"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_several_ranks_are_refused_before_anything_is_looked_at(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("atexit.register", lambda work: work)  # it would end this process, as one of several
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = f"error: hf-accum {arguments[0]} runs in one process, and was started in 2: start it without"
    assert capsys.readouterr().err.startswith(said)
