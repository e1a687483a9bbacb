"""Requests of several clients computed together, by one thread."""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from hf_accum.cli.serving.metrics import Metrics
from hf_accum.cli.serving.rows import Refused, answer_of, checked, of_request
from hf_accum.config.flags import as_flags, flag_names
from hf_accum.data.formats.rows import BadRow
from hf_accum.errors import OutOfMemory
from hf_accum.run.row_predictions import RowModel

GATHER_SECONDS = 0.005
"""How long the first of several requests waits for others."""
_MOST_NAMED = 10  # bad rows of a request


@dataclass(frozen=True)
class _Asked:
    rows: Sequence[Any]
    answer: Future[dict[str, Any]] = field(default_factory=Future)


class Batcher:
    """Answers requests in the order they come, those that wait together: at most `most_rows` rows, or one request.

    What their rows are told is what each is told alone. Rows are prepared and computed in one thread, since neither
    tokenizers nor models are meant for several. `unit` is what a text is measured in.
    """

    def __init__(self, row_model: RowModel[Any], most_rows: int, metrics: Metrics, unit: str = "tokens") -> None:
        self._row_model, self._most_rows, self._metrics, self._unit = row_model, most_rows, metrics, unit
        self._waiting: deque[_Asked] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="hf-accum-serve", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def ask(self, rows: Sequence[Any]) -> Future[dict[str, Any]]:
        """The answer for rows, later: it raises `Refused`, or what went wrong. Cancelled before, it is not computed.

        `close` is not yet called.
        """
        asked = _Asked(rows)
        with self._changed:
            self._waiting.append(asked)
            self._changed.notify()
        return asked.answer

    def close(self) -> None:
        """End after what is computed now; what waits still is cancelled."""
        with self._changed:
            self._is_closing = True
            while self._waiting:
                self._waiting.popleft().answer.cancel()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while asked := self._next():
            self._answer([one for one in asked if one.answer.set_running_or_notify_cancel()])

    def _next(self) -> list[_Asked]:
        """Some that wait, as soon as there are; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            end = time.monotonic() + GATHER_SECONDS
            while not self._is_closing and self._num_rows_waiting() < self._most_rows:
                if not self._changed.wait(end - time.monotonic()):
                    break
            asked, num_rows = [], 0
            while self._waiting and (not asked or num_rows + len(self._waiting[0].rows) <= self._most_rows):
                asked.append(self._waiting.popleft())
                num_rows += len(asked[-1].rows)
            return asked

    def _num_rows_waiting(self) -> int:
        return sum(len(one.rows) for one in self._waiting)

    def _answer(self, asked: Sequence[_Asked]) -> None:
        good: list[tuple[_Asked, list[Any]]] = []
        for one in asked:
            prepared = _or_error(one, lambda one=one: self._prepared(one.rows))
            if prepared is not None:
                good.append((one, prepared))
        if len(good) > 1:
            try:
                told = self._told(good)
            except Exception:  # of one of them, which will be told so; the others are not harmed
                told = None
            if told is not None:
                for (one, prepared), begin in zip(good, _begins(good), strict=True):
                    _or_error(one, lambda p=prepared, b=begin: self._said(told[b : b + len(p)]), is_answer=True)
                return
        for one, prepared in good:
            _or_error(one, lambda one=one, p=prepared: self._said(self._told([(one, p)])), is_answer=True)

    def _prepared(self, rows: Sequence[Any]) -> list[Any]:
        predictor = self._row_model.predictor
        prepared, bad = [], {}
        for place, row in enumerate(rows):
            try:
                prepared.append(predictor.prepare(checked(row, predictor.image_column)))
            except BadRow as error:
                bad[place] = of_request(str(error))  # without its way out, which is that of who started the server
        if bad:
            (first, reason), *_ = bad.items()
            named = [{"row": place, "error": why} for place, why in list(bad.items())[:_MOST_NAMED]]
            raise Refused(422, f"rows[{first}]: {reason}", num_bad_rows=len(bad), bad_rows=named)
        return prepared

    def _told(self, asked: Sequence[tuple[_Asked, list[Any]]]) -> list[Any]:
        prepared = [row for _, of_one in asked for row in of_one]
        self._metrics.computed(len(asked), len(prepared))
        return self._row_model.told(prepared)

    def _said(self, told: Sequence[Any]) -> dict[str, Any]:
        answer = answer_of(told, self._row_model.predictor.adds, self._unit)
        self._metrics.told(len(told), sum(num_cut > 0 for _, num_cut in told))
        return answer


def _begins(asked: Sequence[tuple[_Asked, list[Any]]]) -> list[int]:
    begins = [0]
    for _, prepared in asked[:-1]:
        begins.append(begins[-1] + len(prepared))
    return begins


def _or_error(asked: _Asked, work: Callable[[], Any], *, is_answer: bool = False) -> Any:
    """What the work gives, which may be the answer; where it fails that is, and None is returned."""
    try:
        done = work()
    except Refused as error:
        asked.answer.set_exception(error)
    except BadRow as error:
        asked.answer.set_exception(Refused(422, of_request(str(error))))
    except OutOfMemory as error:
        print(as_flags(f"error: {error}", flag_names()), file=sys.stderr, flush=True)
        reason = "a row is too large for the memory of the server: send a shorter text, or a smaller image"
        asked.answer.set_exception(Refused(413, reason))
    except Exception as error:
        print(_without_texts(error), file=sys.stderr, flush=True)
        reason = f"a fault of the server ({type(error).__name__}); its log says where"
        asked.answer.set_exception(Refused(500, reason))
    else:
        if is_answer:
            asked.answer.set_result(done)
        return done
    return None


def _without_texts(error: Exception) -> str:
    """Where an error is from, without its message, which may quote what a client sent."""
    return "".join(["error: a request failed:\n", *traceback.format_tb(error.__traceback__), type(error).__name__])
