"""Lines for the user before a run has its log: what is to be known at once, and what takes long."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hf_accum.config.flags import as_flags, flag_names
from hf_accum.distributed.ranks import Ranks
from hf_accum.durations import clock

FIRST_AFTER_SECONDS = 8.0
AGAIN_AFTER_SECONDS = 20.0


def tell(ranks: Ranks, text: str) -> None:
    """A line from rank 0, at once; arguments in backticks as flags. Commands have their results in stdout."""
    if ranks.index == 0:
        print(as_flags(text, flag_names()), file=sys.stderr, flush=True)


@contextmanager
def told_if_long(
    ranks: Ranks, what: str, how_far: Callable[[], str] = str, tell: Callable[[Ranks, str], None] = tell
) -> Iterator[None]:
    """Around what may take long: then `what` it is, for how long it has been going on and `how_far` it is are said.

    From rank 0, by a thread: also where a single forward takes minutes. Of what is through soon nothing is said.
    """
    started, is_through = time.monotonic(), threading.Event()

    def watch() -> None:
        seconds = FIRST_AFTER_SECONDS
        while not is_through.wait(seconds):
            so_far = f", {how_far()}" if how_far() else ""
            tell(ranks, f"{what}: {clock(time.monotonic() - started)} so far{so_far}")
            seconds = AGAIN_AFTER_SECONDS

    if ranks.index != 0:
        yield
        return
    thread = threading.Thread(target=watch, name=what, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_through.set()
        thread.join()
