"""How a rank's process ends when its work has failed."""

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ending_past_threads() -> Iterator[None]:
    """Let a rank that ends by an error, after the work inside, end at once when the interpreter does.

    A thread of its own may wait for another rank, in C++. When that one ends too, the thread comes back into an
    interpreter that is being taken down, which aborts the process: with another status than that of the error.
    What others have registered to be done at exit is done before.
    """
    status = 0

    def end() -> None:
        if status and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    atexit.register(end)
    try:
        yield
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
        raise
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
        raise
    except BaseException:
        status = 1
        raise
