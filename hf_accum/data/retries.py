"""Reading rows over a network that fails now and then: again, from the row where it failed."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from hf_accum.errors import first_line

T = TypeVar("T")

_PAUSES = (1.0, 4.0, 15.0, 60.0)  # seconds; on top of what the hub's library waits and tries itself
_OF_NETWORKS = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "requests", "urllib3"})
_LATER = frozenset({408, 425, 429})  # of the statuses from 400 to 499 those that say: try again

_log = logging.getLogger(__name__)


def retried(name: str, read: Callable[[int], Iterator[tuple[int, T]]], start: int) -> Iterator[tuple[int, T]]:
    """The numbered rows that `read(start)` gives, which is called again where the network fails.

    After a row came the pauses begin anew. Once they are used up the error is raised; so is any that another try
    would not help: no such file, no permission.
    """
    pauses = iter(_PAUSES)
    following = start
    while True:
        try:
            for number, row in read(following):
                following = number + 1
                pauses = iter(_PAUSES)
                yield number, row
            return
        except Exception as error:
            pause = next(pauses, None) if is_transient(error) else None
            if pause is None:
                raise
            _log.warning(
                "%s: cannot be read after row %d (%s): tried again in %.0f s",
                name,
                following,
                first_line(error),
                pause,
            )
            time.sleep(pause)


def is_transient(error: Exception) -> bool:
    """Whether it may be gone in a while."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int):
        return status >= 500 or status in _LATER
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _OF_NETWORKS
