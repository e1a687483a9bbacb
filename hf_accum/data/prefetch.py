"""An iterator run ahead in a background thread, by a bounded number of items."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

_END = object()
_PATIENCE_SECONDS = 30.0


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetched(make: Callable[[], Iterator[T]], num_items: int) -> Generator[T, None, None]:
    """Yield what `make()` yields, made in a thread that keeps at most `num_items` ready, and one in the making.

    An error of the thread is raised here, after the items before it. When this iterator is closed the thread
    ends; if it is waiting for something that does not come (another rank that has failed), it is left behind.
    """
    items: queue.Queue[object] = queue.Queue(maxsize=num_items)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in make():
                if not put(item):
                    return
            put(_END)
        except BaseException as error:
            put(_Failure(error))

    thread = threading.Thread(target=produce, name="hf-accum-prefetch", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join(_PATIENCE_SECONDS)
