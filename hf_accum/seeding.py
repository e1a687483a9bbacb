"""Seeds for everything random, derived from one number."""

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a run's seed and the names of what it is for.

    The same parts give the same seed on every machine, rank and Python version; any other part gives an
    unrelated one. Nothing random needs a saved generator state: a replay or a resumed run derives it again.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def use_deterministic_algorithms() -> None:
    """Have torch compute the same from the same, bit for bit; what has no such algorithm warns once."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS wants it, before its first use
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def keeping_random_state(device: "torch.device | None" = None) -> Iterator[None]:
    """Afterwards the generators of Python, numpy, torch and the device are as they were."""
    import numpy as np
    import torch

    states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    module = None if device is None or device.type == "cpu" else torch.get_device_module(device)
    of_device = None if module is None else module.get_rng_state(device)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if module is not None:
            module.set_rng_state(of_device, device)
