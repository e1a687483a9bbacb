"""Seeds for everything random, derived from one number."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a run's seed and the names of what it is for.

    The same parts give the same seed on every machine, rank and Python version; any other part gives an
    unrelated one. Nothing random needs a saved generator state: a replay or a resumed run derives it again.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
