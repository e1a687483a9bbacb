"""How memory is taken where it is scarce: given back when it is freed, and nothing set aside."""

import os
import resource
import subprocess
import sys

import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")


def in_a_process(script: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    return subprocess.run(
        [sys.executable, "-c", script], text=True, capture_output=True, check=True, env=environment
    ).stdout


@linux
def test_memory_of_larger_blocks_goes_back_to_the_system_when_it_is_freed() -> None:
    """A block of 20 MiB under one that stays: glibc keeps it, once it has learned from freed ones of 30 MiB."""
    script = """
import ctypes, sys
from hf_accum.device.malloc import return_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1:] or {returns}:
    return_freed_memory()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def filled(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block
libc.free(filled(30 * 2**20))
block, above = filled(20 * 2**20), filled(2**16)
full = resident()
libc.free(block)
print((full - resident()) // 2**20)
"""
    assert int(in_a_process(script.format(returns=True))) >= 19
    assert int(in_a_process(script.format(returns=False))) <= 1, "the test shows nothing"


@linux
@pytest.mark.parametrize("limit", ["RLIMIT_DATA", "RLIMIT_AS", None])
def test_arrow_sets_nothing_aside_where_the_process_is_limited(limit: str | None) -> None:
    most = 2**40
    assert resource.RLIM_INFINITY not in range(most)
    script = f"""
import os, resource
from hf_accum.device.malloc import prepare_for_limits
if {limit!r}:
    resource.setrlimit(getattr(resource, {limit!r}), ({most}, resource.RLIM_INFINITY))
prepare_for_limits()
print(os.environ.get("ARROW_DEFAULT_MEMORY_POOL"))
"""
    assert in_a_process(script).strip() == ("system" if limit else "None")
