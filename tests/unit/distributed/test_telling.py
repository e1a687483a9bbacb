"""What takes long before a run has its log: said from rank 0 while it goes on; what is through soon is not."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from hf_accum.distributed import telling
from hf_accum.distributed.ranks import OneRank
from hf_accum.distributed.telling import tell, told_if_long

OTHER: Any = SimpleNamespace(index=1, count=2)


def test_a_line_is_told_by_rank_0_with_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    tell(OneRank(), "a number as `micro_batch_size` spares it")
    tell(OTHER, "nobody hears this")
    assert capsys.readouterr().err == "a number as --micro_batch_size spares it\n"


def test_what_is_through_soon_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    with told_if_long(OneRank(), "reading"):
        pass
    assert capsys.readouterr().err == ""


def test_what_takes_long_is_told_again_and_again_with_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "FIRST_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(telling, "AGAIN_AFTER_SECONDS", 0.0)
    lines: list[str] = []
    enough = threading.Event()

    def listen(_: object, text: str) -> None:
        lines.append(text)
        if len(lines) == 2:
            enough.set()

    with told_if_long(OneRank(), "reading", lambda: f"{1_000 * (len(lines) + 1):,} rows", listen):
        assert enough.wait(60)
    assert lines[0].startswith("reading: 0:00:")
    assert [line.rpartition(" so far, ")[2] for line in lines[:2]] == ["1,000 rows", "2,000 rows"]
    assert not [thread for thread in threading.enumerate() if thread.name == "reading"]
    with told_if_long(OTHER, "writing", tell=listen):
        assert not [thread for thread in threading.enumerate() if thread.name == "writing"]
