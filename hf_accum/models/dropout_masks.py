"""Dropout masks on a CPU, drawn more than three times as fast as torch draws them.

For every value torch takes a float64 from the generator, on one core; here it takes 16 bits, and compares them on
all cores. Where these say nothing, as they are just the number below which values are kept (one of 65,536), the rest
of the probability decides by a float64: each value is kept by itself, with the probability that is asked for. The
generator, and so what seeds it and saves its state, stays torch's.
"""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_VALUES_AT_ONCE = 2**17  # whose bits stay in a cache
_NUMBERS = 2**16  # that a value's bits can be
_VALUES_IN_WORD = 4

_installed: list[torch.library.Library] = []


def draw_masks_fast(is_wanted: bool = True) -> None:
    """For all of this process, from now on: `Tensor.bernoulli_` on a CPU, which all dropout goes through; or torch's.

    Where torch itself is fast (with MKL on a CPU of Intel) nothing is changed.
    """
    if not is_wanted:
        while _installed:
            _installed.pop()._destroy()
    elif not _installed and not _torch_is_fast():
        library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*[Oo]verriding a previously registered kernel")
            library.impl("bernoulli_.float", _bernoulli_, "CPU", allow_override=True)
        _installed.append(library)


def _torch_is_fast() -> bool:
    try:
        return torch.backends.mkl.is_available() and "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _bernoulli_(tensor: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    if not 0 <= p <= 1:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
    if p == 1:
        return tensor.fill_(1)
    whole = math.floor(p * _NUMBERS)
    threshold, rest = whole - _NUMBERS // 2, p * _NUMBERS - whole
    values = tensor if tensor.is_contiguous() else torch.empty_like(tensor, memory_format=torch.contiguous_format)
    flat = values.view(-1)
    words = torch.empty(-(-min(len(flat), _VALUES_AT_ONCE) // _VALUES_IN_WORD), dtype=torch.int64)
    for start in range(0, len(flat), _VALUES_AT_ONCE):
        part = flat[start : start + _VALUES_AT_ONCE]
        of_part = words[: -(-len(part) // _VALUES_IN_WORD)].random_(-(2**63), None, generator=generator)
        bits = of_part.view(torch.int16)[: len(part)]
        torch.lt(bits, threshold, out=part)
        if rest:
            equal = torch.from_numpy(np.flatnonzero(bits.numpy() == threshold))
            drawn = torch.rand(len(equal), dtype=torch.float64, generator=generator)
            part[equal] = (drawn < rest).to(part.dtype)
    return tensor if values is tensor else tensor.copy_(values)
