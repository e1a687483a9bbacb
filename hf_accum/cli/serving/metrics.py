"""What a server has done, counted, in the text format of Prometheus."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        total, lines = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum}", f"{name}_count {total}"]


class Metrics:
    """Counts since the server's start. Any thread may add to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_status, self._num_rows, self._num_cut = Counter[int](), 0, 0
        self._seconds, self._rows, self._requests = _Histogram(_SECONDS), _Histogram(_SIZES), _Histogram(_SIZES)

    def answered(self, status: int, seconds: float) -> None:
        """A request was answered with an HTTP status, after so long."""
        with self._lock:
            self._by_status[status] += 1
            self._seconds.add(seconds)

    def computed(self, num_requests: int, num_rows: int) -> None:
        """Rows of some requests went to the model together."""
        with self._lock:
            self._requests.add(num_requests)
            self._rows.add(num_rows)

    def told(self, num_rows: int, num_cut: int) -> None:
        """Rows were predicted, some of them cut to length."""
        with self._lock:
            self._num_rows += num_rows
            self._num_cut += num_cut

    def text(self, num_in_progress: int) -> str:
        """All of it, and how many requests are being read, wait or are computed now."""
        with self._lock:
            errors = sum(count for status, count in self._by_status.items() if status >= 400)
            statuses = [f'hf_accum_requests_total{{status="{s}"}} {n}' for s, n in sorted(self._by_status.items())]
            lines = [
                *_of("requests_total", "counter", "Requests to /predict by HTTP status.", statuses),
                *_one(
                    "errors_total", "counter", "Requests to /predict that were not answered (status 400+).", errors
                ),
                *_one("rows_total", "counter", "Rows that were predicted.", self._num_rows),
                *_one("cut_rows_total", "counter", "Of these, cut to the longest text.", self._num_cut),
                *_one(
                    "requests_in_progress", "gauge", "Requests that are read, wait or are computed.", num_in_progress
                ),
            ]
            for name, told, histogram in (
                ("request_seconds", "From a request's first byte to its answer.", self._seconds),
                ("batch_rows", "Rows that went to the model together.", self._rows),
                ("batch_requests", "Requests whose rows went to the model together.", self._requests),
            ):
                lines += _of(name, "histogram", told, histogram.lines(f"hf_accum_{name}"))
        return "\n".join(lines) + "\n"


def _of(name: str, kind: str, told: str, lines: list[str]) -> list[str]:
    return [f"# HELP hf_accum_{name} {told}", f"# TYPE hf_accum_{name} {kind}", *lines]


def _one(name: str, kind: str, told: str, value: int) -> list[str]:
    return _of(name, kind, told, [f"hf_accum_{name} {value}"])
