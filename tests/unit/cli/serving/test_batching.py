"""Requests that wait are computed together; the failure of one is its own."""

import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest

from hf_accum.cli.serving.batching import Batcher
from hf_accum.cli.serving.metrics import Metrics
from hf_accum.cli.serving.rows import Refused
from hf_accum.data.formats.rows import BadRow
from hf_accum.tasks.prediction import Told


class _Doubling:
    """In the place of a `RowModel`: rows are numbers in a column. It notes what it computes, and waits where told."""

    image_column, adds = None, ("double",)

    def __init__(self) -> None:
        self.predictor, self.computed = self, list[list[int]]()
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def prepare(self, row: Any) -> int:
        if not isinstance(row.get("number"), int):
            raise BadRow("number", "is none", "give one by `numbers`")
        return row["number"]

    def told(self, numbers: list[int]) -> list[tuple[Told, int]]:
        self.computed.append(numbers)
        self.begun.set()
        assert self.may_go_on.wait(30)
        if 13 in numbers:
            raise RuntimeError(f"of rows {numbers}")
        return [(Told({"double": 2 * number}), 0) for number in numbers]


def numbered(*numbers: object) -> list[dict[str, object]]:
    return [{"number": number} for number in numbers]


def test_what_waits_is_computed_together_up_to_the_most_rows() -> None:
    model = _Doubling()
    batcher = Batcher(model, 4, Metrics())  # type: ignore[arg-type]
    answers = [batcher.ask(numbered(0))]
    assert model.begun.wait(30)
    answers += [batcher.ask(numbered(*numbers)) for numbers in ((1, 2), (3,), (4, 5), (), (6, 7, 8, 9, 10, 11))]
    gone = batcher.ask(numbered(99))
    assert gone.cancel()
    answers.append(batcher.ask(numbered(12)))
    model.may_go_on.set()
    rows = [[row["double"] for row in answer.result(30)["rows"]] for answer in answers]
    assert rows == [[0], [2, 4], [6], [8, 10], [], [12, 14, 16, 18, 20, 22], [24]]
    assert model.computed == [[0], [1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11], [12]]
    batcher.close()
    assert not batcher.is_alive


def test_only_the_bad_ones_fail(capsys: pytest.CaptureFixture[str]) -> None:
    model = _Doubling()
    batcher = Batcher(model, 100, Metrics())  # type: ignore[arg-type]
    first = batcher.ask(numbered(0))
    assert model.begun.wait(30)
    bad, failing, good = (batcher.ask(numbered(*numbers)) for numbers in ((1, None, "x"), (13,), (2, 3)))
    model.may_go_on.set()
    assert first.result(30)["rows"] == [{"double": 0}]
    with pytest.raises(Refused, match=r"rows\[1\]: field 'number': is none$") as refused:
        bad.result(30)
    assert (refused.value.status, refused.value.answer["num_bad_rows"]) == (422, 2)
    with pytest.raises(Refused, match="RuntimeError") as refused:
        failing.result(30)
    assert refused.value.status == 500
    assert "[13" not in str(refused.value)
    assert good.result(30)["rows"] == [{"double": 4}, {"double": 6}]
    assert model.computed == [[0], [13, 2, 3], [13], [2, 3]]
    batcher.close()
    said = capsys.readouterr().err
    assert "test_batching.py" in said
    assert "[13" not in said


def test_what_waits_at_the_end_is_cancelled_and_what_is_computed_is_answered() -> None:
    model = _Doubling()
    batcher = Batcher(model, 4, Metrics())  # type: ignore[arg-type]
    computed = batcher.ask(numbered(1))
    assert model.begun.wait(30)
    waiting = batcher.ask(numbered(2))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with pytest.raises(CancelledError):
        waiting.result(30)
    model.may_go_on.set()
    closing.join(30)
    assert computed.result(30)["rows"] == [{"double": 2}]
    assert model.computed == [[1]]
