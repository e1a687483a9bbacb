"""How this process takes memory from its machine, where that is scarce."""

import ctypes
import os
import resource
import sys

_M_MMAP_THRESHOLD = -3


def prepare_for_limits() -> None:
    """Where RLIMIT_DATA or RLIMIT_AS is set: take little in advance, and give back what is freed.

    To be called before Arrow is imported: its own allocator sets a gibibyte aside when it is first used.
    """
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
        return_freed_memory()


def return_freed_memory() -> None:
    """Have the memory of every larger tensor given back to the system when it is freed.

    glibc keeps it otherwise, in pieces that later tensors of other sizes do not fit into: a process grows by a
    third and more over a run. It costs some 5 to 10 % of time (tests/bench/README.md).
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 2**20)
