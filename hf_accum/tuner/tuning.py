"""What the tuner found: the capacity of a device for a workload, and how it was found."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_accum.accumulation.capacity import Capacity, halved
from hf_accum.accumulation.example import TOKENS, Lengths
from hf_accum.accumulation.time_model import UNLEARNED, Costs
from hf_accum.byte_sizes import format_bytes
from hf_accum.tuner.prediction import Prediction
from hf_accum.tuner.probes import Probe


@dataclass(frozen=True)
class Tuning:
    """What was found, and how. `slope` and `offset_bytes` turn predicted into measured bytes; the offset is on top
    of what was in use before.
    """

    capacity: Capacity
    device: str
    limit_bytes: int
    max_length: int
    probes: tuple[Probe, ...]
    slope: float
    offset_bytes: float
    seconds: float
    prediction: Prediction | None = None
    checkpointing: bool = False
    from_cache: bool = False
    costs: Costs = UNLEARNED
    """By the probes, or what an earlier run learned: then they are `settled`."""
    settled: bool = False
    frontier: float | None = None
    """The share of the budget that shorter lengths were left with, once they were verified; None: they were not."""
    enough: int | None = None
    """So many of the longest length compute for as long as a probe may: more were not tried."""
    cache: Path | None = None
    """Where it is kept for later runs."""
    lengths: Lengths = TOKENS

    @staticmethod
    def as_given(size: int, max_length: int, checkpointing: bool = False, lengths: Lengths = TOKENS) -> "Tuning":
        """A number that the user gave: nothing was measured."""
        none: tuple[Probe, ...] = ()
        how = {"checkpointing": checkpointing, "lengths": lengths}
        return Tuning(Capacity(size), "", 0, max_length, none, 1.0, 0.0, 0.0, **how)

    def largest(self) -> dict[int, int]:
        """The largest micro-batch for lengths from the longest down, halved each time, where they vary."""
        lengths = halved(self.max_length, 8) if self.lengths.vary else [self.max_length]
        return {length: self.capacity.num_examples(length) for length in lengths}

    def as_json(self) -> dict[str, Any]:
        """For tuning.json."""
        return {
            "budget_bytes": self.limit_bytes,
            "device": self.device,
            "max_length": self.max_length,
            "gradient_checkpointing": self.checkpointing,
            "largest_micro_batch": {str(length): number for length, number in self.largest().items()},
            "probes": [asdict(probe) for probe in self.probes],
            "correction": {"slope": self.slope, "offset_bytes": self.offset_bytes},
            "more_were_not_tried": self.enough is not None,
            "from_cache": self.from_cache,
            "seconds": self.seconds,
            "capacity": self.capacity.as_json(),
            "costs": self.costs.as_json(),
            "costs_are_settled": self.settled,
        }

    def __str__(self) -> str:
        if self.capacity.peak is None:
            ignored = (
                "; `memory_budget` limits nothing on a CPU beside a number of examples" if self.limit_bytes else ""
            )
            return f"at most {self.capacity.most} examples at once on each rank, as given{ignored}"
        largest = self.largest()
        shortest = min(length for length, number in largest.items())
        up_to = [f"{largest[self.max_length]}{self.lengths.of(self.max_length)}"]
        capped = [length for length, number in largest.items() if number == self.capacity.most]
        if capped and capped[0] != self.max_length:
            up_to.append(f"{self.capacity.most} (all of a window) of {capped[0]}")
        elif shortest != self.max_length and largest[shortest] != largest[self.max_length]:
            up_to.append(f"{largest[shortest]} of {shortest}")
        ran = [probe for probe in self.probes if probe.fits]
        peak = max((probe.measured_bytes or 0 for probe in ran), default=0)
        probes = "1 probe" if len(self.probes) == 1 else f"{len(self.probes)} probes"
        return (
            f"at most {', '.join(up_to)} at once; {format_bytes(peak)} measured of {format_bytes(self.limit_bytes)} "
            f"on {self.device} ({probes}{', from the cache' if self.from_cache else ''}, "
            f"{self.seconds:.1f} s{', with gradient checkpointing' if self.checkpointing else ''})"
            f"{self._caveat()}"
        )

    def _caveat(self) -> str:
        if self.enough is not None:
            return "; more would fit, as predicted, and be no faster: `max_probe_seconds null` tries them"
        if self.prediction is None or self.prediction.is_traced:
            return ""
        return "; this model cannot be traced, so that the size was found by trying, for the longest length only"
