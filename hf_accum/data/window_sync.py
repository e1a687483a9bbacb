"""The one collective of a window: what it holds over all ranks, and whether all of them go on."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from hf_accum.accumulation.example import Example
from hf_accum.distributed.ranks import Ranks, bits_float, float_bits
from hf_accum.errors import RankFailed, ReadingFailed

_OK, _FAILED, _STOPPED = 0, 1, 2
_NUM_NUMBERS = 10


@dataclass(frozen=True)
class Facts:
    """What the ranks agreed on for a window."""

    counts: list[int]
    """Examples of each rank."""
    announced: list[int]
    num_items: float
    num_tokens: int
    digest: str
    num_truncated_examples: int
    num_truncated_tokens: int
    is_stop_asked: bool
    """By any rank."""

    @property
    def num_examples(self) -> int:
        """Over all ranks."""
        return sum(self.counts)

    @property
    def is_end(self) -> bool:
        """Whether no rank has anything, or announces anything."""
        return self.num_examples == 0 and sum(self.announced) == 0


def agree(
    ranks: Ranks, examples: Sequence[Example], announced: int, error: Exception | None, is_stop_asked: bool = False
) -> Facts:
    """Tell the other ranks of this one's part of a window, and of a number that it announces; or of its error.

    `is_stop_asked` says that this rank was asked to end the run.

    Raises:
        ReadingFailed: if another rank could not read its data.
        RankFailed: if another rank has left.
        Exception: this rank's error.
    """
    truncated = [e.num_truncated_tokens for e in examples if e.num_truncated_tokens]
    digests = np.array([_digest(e.id) for e in examples], dtype=np.uint64).reshape(-1, 2)
    sums = digests.sum(axis=0, dtype=np.uint64).view(np.int64)
    everyone = ranks.gather(
        [
            _OK if error is None else _FAILED,
            len(examples),
            announced,
            float_bits(float(sum(e.weight for e in examples))),
            sum(e.length for e in examples),
            int(sums[0]),
            int(sums[1]),
            len(truncated),
            sum(truncated),
            int(is_stop_asked),
        ]
    )
    if error is not None:
        raise error
    states, counts, announcements, items, tokens, *halves, num_truncated, truncated_tokens, stops = zip(
        *everyone, strict=True
    )
    if _FAILED in states:
        raise ReadingFailed(f"reading the data failed on rank {states.index(_FAILED)}: see its error")
    if _STOPPED in states:
        raise RankFailed(f"rank {states.index(_STOPPED)} has stopped reading the data: see its error")
    return Facts(
        counts=list(counts),
        announced=list(announcements),
        num_items=sum(map(bits_float, items)),
        num_tokens=sum(tokens),
        digest="".join(f"{sum(half) % 2**64:016x}" for half in halves),
        num_truncated_examples=sum(num_truncated),
        num_truncated_tokens=sum(truncated_tokens),
        is_stop_asked=any(stops),
    )


def leave(ranks: Ranks) -> None:
    """Tell the other ranks, which may wait for this one's next window, that there is none."""
    ranks.gather([_STOPPED, *[0] * (_NUM_NUMBERS - 1)])


def share_out(total: int, available: Sequence[int]) -> list[int]:
    """Split `total` over ranks as evenly as what each has available allows.

    The shares add up to `total`, or to everything there is.
    """
    shares = [0] * len(available)
    left = min(total, sum(available))
    poorest_first = sorted(range(len(available)), key=lambda rank: available[rank])
    for place, rank in enumerate(poorest_first):
        shares[rank] = min(available[rank], left // (len(available) - place))
        left -= shares[rank]
    return shares


def _digest(example_id: str) -> tuple[int, int]:
    digest = blake2b(example_id.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
