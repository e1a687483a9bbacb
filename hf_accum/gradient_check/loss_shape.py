"""Is a loss a sum over the examples, a mean of what, or neither? By its values on some of them.

A mean of sums, L = S / d with S and d added up over examples, gives of two examples a value between those of each:
L(i, j) = (d_i L_i + d_j L_j) / (d_i + d_j). So pairs tell d up to a factor, and all other batches have to agree.
"""

from dataclasses import dataclass, field

import torch

from hf_accum.gradient_check.probe import Probe
from hf_accum.gradient_check.rows import Rows

_MOST = 6  # examples that are looked at
_LOOSE = 1e-4
"""Relative: what is computed as a quotient of differences."""


@dataclass(frozen=True)
class Shape:
    """`is_mean`: a sum, divided; `divisor` says by what, if by a count. `is_interaction`: examples change others."""

    is_mean: bool = False
    divisor: str = ""
    depends_on_output: bool = False
    is_interaction: bool = False
    numbers: dict[str, float] = field(default_factory=dict)


def shape_of(probe: Probe, rows: Rows) -> Shape:
    """What the values of the loss say."""
    places = list(range(min(_MOST, rows.num_examples)))
    once, twice = (probe.loss(rows.batch(places * times)) for times in (1, 2))
    numbers = {"loss of all twice / once": twice / once if once else float("nan")}
    if not probe.differ(once, twice):
        shares = _shares(probe, rows, places)
        if shares is not None:
            divisor = _divisor(rows, places, shares)
            depends = not divisor and _depends_on_output(probe, rows, places, shares)
            return Shape(True, divisor, depends, numbers=numbers)
    mixed = _mixed_difference(probe, rows)
    return Shape(is_interaction=mixed, numbers=numbers)


def _shares(probe: Probe, rows: Rows, places: list[int]) -> list[float] | None:
    """What each example's part of the divisor is, relative to the first's; None: no mean explains the losses."""
    alone = [probe.loss(rows.batch([place])) for place in places]
    shares = [1.0]
    scale = max(map(abs, alone)) or 1.0
    known = [0]
    for place in places[1:]:
        pair = probe.loss(rows.batch([0, place]))
        # With little between them, how much each counts does not show.
        if abs(alone[0] - alone[place]) < 1e-4 * scale or abs(pair - alone[place]) < 1e-12 * scale:
            shares.append(float("nan"))
            continue
        shares.append((alone[0] - pair) / (pair - alone[place]))
        known.append(place)
    if any(not 0 < shares[place] < float("inf") for place in known):
        return None
    for some in filter(None, (known, known[1:], known[::-1][:2], known[:3])):
        expected = sum(shares[p] * alone[p] for p in some) / sum(shares[p] for p in some)
        if abs(probe.loss(rows.batch(some)) - expected) > _LOOSE * scale:
            return None
    return shares


def _divisor(rows: Rows, places: list[int], shares: list[float]) -> str:
    """Which count the shares follow, by its name; '' where none."""
    counts = [rows.counts(rows.batch([place])) for place in places]
    for name in counts[0]:
        first = counts[0][name]
        if first and all(_near(share, of[name] / first) for share, of in zip(shares, counts, strict=True)):
            return name
    return ""


def _near(share: float, expected: float) -> bool:
    return share != share or expected != expected or abs(share - expected) <= 1e-3 * max(1.0, expected)


def _depends_on_output(probe: Probe, rows: Rows, places: list[int], shares: list[float]) -> bool:
    """Whether the shares are others with other weights of the model."""
    generator = torch.Generator().manual_seed(0)
    parameters = list(probe.model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)
                parameter += 0.2 * (parameter.std() if parameter.numel() > 1 else 1.0) * noise
        others = _shares(probe, rows, places)
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    return others is None or any(not _near(share, other) for share, other in zip(shares, others, strict=True))


def _mixed_difference(probe: Probe, rows: Rows) -> bool:
    """Whether the change of the loss by another example in the place of one depends on the others, at one size."""
    n = rows.num_examples
    for a, b, other, beside in ((0, 1, 2, 3), (n - 1, 0, n - 2, 1), (1, 2, 0, n - 1)):
        batches = ([a, b], [other, b], [a, beside], [other, beside])
        try:
            both, changed, moved, both_changed = (probe.loss(rows.batch(places)) for places in batches)
        except (ValueError, RuntimeError):
            return False
        size = max(map(abs, (both, changed, moved, both_changed)))
        if abs(both - changed - moved + both_changed) > max(1e-8, 10 * probe.tolerance) * size:
            return True
    return False
