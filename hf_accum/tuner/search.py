"""Finds the capacity of a device: predicted from a trace, verified by real probes, corrected by what they measure.

A device counts differently from a trace: it rounds, caches, keeps fragments. What it counts is taken for a line,
`measured = offset + slope * predicted`, whose two numbers come from the probes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from hf_accum.accumulation.capacity import Capacity
from hf_accum.accumulation.time_model import Costs, Observation, fit_costs
from hf_accum.byte_sizes import format_bytes
from hf_accum.device.memory import DeviceMemory
from hf_accum.errors import OutOfMemory
from hf_accum.tuner.prediction import Prediction, predict
from hf_accum.tuner.probes import Prober
from hf_accum.tuner.tuning import Tuning
from hf_accum.tuner.workload import Workload

_MOST_PROBES = 3  # in which noise is evened out; a size that failed is bisected for as long as it takes
_NOISE = 20  # 1 / 20 of a size
_PLENTY = 1.5  # times what a window of the longest length takes
_SHRINKS = 0.95


class NothingFits(OutOfMemory):
    """Not even one example of the longest length fits; `budget_bytes`: what would have had to do, as predicted."""

    def __init__(self, message: str, budget_bytes: float) -> None:
        super().__init__(message)
        self.budget_bytes = budget_bytes


def tune(
    workload: Workload,
    memory: DeviceMemory,
    device: torch.device,
    *,
    most: int,
    known: Tuning | None = None,
    prediction: Prediction | None = None,
    max_probe_seconds: float | None = None,
    watch: Callable[[int, int], object] = lambda *_: None,
) -> Tuning:
    """The largest micro-batch of each length that fits, up to `most` examples.

    Where memory is plenty (a window of the longest length should fit, and half of one beside it), as many as compute
    for `max_probe_seconds`, or a quarter of the window, are taken for enough (on a real device; None: the largest all
    the same).

    `known` is an earlier result for the same workload on such a device: if one probe at what it says for the limit
    of today agrees with it, that is the result. `prediction` is that of the workload, if it was made. `watch` is told
    of each probe before it: its examples, their length.

    Everything is as before afterwards: weights, buffers, gradients, optimizer state, modes, random generators.

    Raises:
        NothingFits: if not even one example of the longest length does.
        CannotTrace: if the model cannot be traced.
    """
    started = time.perf_counter()
    prober, good, enough = None, 0, None
    if known is not None and known.prediction is not None:
        memory.expect(known.prediction.training.bytes_at(most, workload.max_length))
        prober = Prober(workload, memory, device, known.prediction, watch)
        prober.trust(known.slope, known.offset_bytes)
        good = _verify(prober, min(most, known.enough or most))
        enough = known.enough if good == known.enough else None
        if not good:
            prober = None
    from_cache = prober is not None
    if prober is None:
        prediction = prediction or predict(workload, untraced=True)
        memory.expect(prediction.training.bytes_at(most, workload.max_length))
        prober = Prober(workload, memory, device, prediction, watch)
        good, enough = _search(prober, most, max_probe_seconds)
    peak, longest = prober.prediction.training, workload.max_length
    if good == 0:
        raise _nothing_fits(prober)
    # The budget in predicted bytes, for all other lengths: it allows what ran, and not what did not.
    budget = max(prober.budget_bytes(), peak.bytes_at(good, longest))
    if good < most:
        budget = min(budget, peak.bytes_at(good + 1, longest) - 1)
    capacity = Capacity(most, peak, budget, at_least=good)
    frontier = known.frontier if from_cache and known is not None else None
    if frontier is not None:
        capacity = replace(capacity, budget_bytes=budget * frontier)
    elif good < most and enough is None and workload.lengths.vary:
        capacity = _verify_frontier(capacity, prober, longest)
        frontier = capacity.budget_bytes / budget
    return Tuning(
        capacity=capacity,
        device=memory.name,
        limit_bytes=memory.limit_bytes,
        max_length=longest,
        probes=tuple(prober.probes),
        slope=prober.slope,
        offset_bytes=prober.offset_bytes - prober.used_bytes,
        seconds=time.perf_counter() - started,
        prediction=prober.prediction,
        from_cache=from_cache,
        costs=known.costs if from_cache and known is not None else _costs(prober),
        settled=from_cache and known is not None and known.settled,
        frontier=frontier,
        enough=enough,
        lengths=workload.lengths,
    )


def _nothing_fits(prober: Prober) -> NothingFits:
    longest = prober.workload.max_length
    one_example = f"not even one example{prober.workload.lengths.of(longest)} fits"
    limit, budget = prober.memory.limit_bytes, prober.budget_bytes()
    one = prober.prediction.needed_bytes(1, longest)
    needed = prober.measured(one)
    if needed > limit:
        return NothingFits(
            f"{one_example}: it needs {format_bytes(needed)} on "
            f"{prober.memory.name}, {format_bytes(needed - limit)} more than the {format_bytes(limit)} that the run "
            "may use",
            budget,
        )
    return NothingFits(
        f"{one_example}: it ran out of memory on {prober.memory.name}, though it "
        f"was predicted to need {format_bytes(needed)} of the {format_bytes(limit)} that the run may use",
        min(budget, one - 1),
    )


def _costs(prober: Prober) -> Costs:
    """By the times of the probes; of the first no more than that it is one, for it has loaded and compiled things."""
    timed = [Observation(p.num_examples, p.length, p.seconds) for p in prober.probes if p.seconds is not None]
    return fit_costs(timed[1:] or timed)


def _verify(prober: Prober, most: int) -> int:
    """Run what a known result says, once; 0 if it does not fit, or measures something else."""
    longest = prober.workload.max_length
    good = prober.largest(longest, most)
    if good == 0:
        return 0
    expected = prober.measured(prober.prediction.training.bytes_at(good, longest))
    probe = prober.run(good, longest)
    agrees = probe.measured_bytes is not None and abs(probe.measured_bytes - expected) <= expected / _NOISE
    has_room = prober.largest(longest, most) > good + good // _NOISE
    return good if probe.fits and agrees and not has_room else 0


def _search(prober: Prober, most: int, max_probe_seconds: float | None) -> tuple[int, int | None]:
    """The largest size of the longest length that ran; 0 if none does, or the optimizer's step needs more.

    And how many are enough, where more would fit.
    """
    longest = prober.workload.max_length
    good, bad = 0, most + 1
    enough = None
    if not prober.memory.is_exact:
        # What is loaded, compiled or allocated once, at the first use, comes with this one.
        good, bad = (1, bad) if prober.run(1, longest).fits else (0, 1)
        if good and max_probe_seconds is not None:
            enough = _enough(prober, most, max_probe_seconds)
    while bad - good > 1:
        number = prober.largest(longest, most)
        if number == 0 and not prober.probes:
            number = 1  # as predicted it does not fit; what it measures is said
        if enough is not None and good >= enough and not _is_plenty(prober, most):
            enough = None  # as what ran since says
        if enough is not None:
            number = min(number, enough)
        if prober.probes and prober.probes[-1].measured_bytes is None and number >= bad:
            number = (good + bad) // 2  # the line is wrong about the size that failed
        number = min(number, bad - 1)
        is_noise = len(prober.probes) >= _MOST_PROBES and number - good <= good // _NOISE
        if number <= good or is_noise:
            break
        if prober.run(number, longest).fits:
            good = number
        else:
            bad = number
    # The optimizer's step may need more than a forward and backward, and is not probed.
    fits = prober.measured(prober.prediction.fixed.floor) <= prober.memory.limit_bytes
    return (good if fits else 0), (enough if good == enough else None)


def _enough(prober: Prober, most: int, max_seconds: float) -> int | None:
    """How many examples of the longest length compute for so long, where a window of them takes more than twice that.

    A power of 2, so that it is the same in most runs, but no less than a quarter of the window, whatever the clock
    says of a device that is busy with other things. None: memory is not plenty, or the window not so large.
    """
    longest = prober.workload.max_length
    seconds = prober.probes[-1].seconds
    if seconds is None or most * seconds <= 2 * max_seconds or not _is_plenty(prober, most):
        return None
    seconds = prober.run(1, longest).seconds  # the first one's hold what is done once
    if seconds is None:
        return None
    number = max(2 ** max(0, math.floor(math.log2(max_seconds / seconds))), -(-most // 4))
    return number if most > 2 * number else None


def _is_plenty(prober: Prober, most: int) -> bool:
    """Whether memory is, by what was measured so far: for more than a window of the longest length."""
    of_window = prober.prediction.training.bytes_at(most, prober.workload.max_length)
    return prober.budget_bytes() >= _PLENTY * of_window


def _verify_frontier(capacity: Capacity, prober: Prober, longest: int) -> Capacity:
    """Run micro-batches of shorter lengths too, where what was measured does not say enough of them.

    First the other end of the frontier: all that a window can hold, as long as is predicted to fit; three points on
    the line spare it. Then, while the frontier goes further beyond what was measured than the measurements are apart,
    the micro-batch there that is predicted to need most.
    """
    is_line = len(prober.probes) >= _MOST_PROBES and all(p.measured_bytes is not None for p in prober.probes)
    if not is_line:
        capacity = _verify_at(capacity, prober, lambda capacity: _short_end(capacity, longest))
    return _verify_at(capacity, prober, lambda capacity: _far_beyond(capacity, prober, longest))


def _verify_at(capacity: Capacity, prober: Prober, place: Callable[[Capacity], tuple[int, int] | None]) -> Capacity:
    """Run the (num_examples, length) at a place of the frontier, until it fits or there is no such place.

    While it does not fit the budget of the lengths below the longest shrinks: to what the line through all that was
    measured says, or by a little.
    """
    while (point := place(capacity)) is not None:
        fits = prober.run(*point).fits
        budget = min(capacity.budget_bytes, prober.budget_bytes())
        if fits:
            return replace(capacity, budget_bytes=budget)
        by_a_little = capacity.budget_bytes * _SHRINKS
        is_measured = prober.probes[-1].measured_bytes is not None and budget < capacity.budget_bytes
        capacity = replace(capacity, budget_bytes=budget if is_measured else by_a_little)
    return capacity


def _short_end(capacity: Capacity, longest: int) -> tuple[int, int] | None:
    fitting = [length for length in range(1, longest) if capacity.num_examples(length) == capacity.most]
    return (capacity.most, max(fitting)) if fitting else None


def _far_beyond(capacity: Capacity, prober: Prober, longest: int) -> tuple[int, int] | None:
    """Where the frontier needs most, if the line through the probes says little of that."""
    points = [(capacity.num_examples(length), length) for length in range(1, longest)]
    if not points:
        return None
    predicted = prober.prediction.training.bytes_at
    worst = max(points, key=lambda point: predicted(*point))
    measured = [probe.predicted_bytes for probe in prober.probes if probe.measured_bytes is not None]
    lowest = 0 if prober.memory.is_exact else min(measured, default=0)  # that line goes through the origin
    is_known = measured and predicted(*worst) - max(measured) <= max(measured) - lowest
    return None if is_known else worst
