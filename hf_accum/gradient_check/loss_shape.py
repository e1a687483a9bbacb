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
    growth: float = 1.0
    """The loss of some examples twice, relative to that of them once: of a sum 2."""
    numbers: dict[str, float] = field(default_factory=dict)


def shape_of(probe: Probe, rows: Rows) -> Shape:
    """What the values of the loss say."""
    counted = [place for place in range(rows.num_examples) if rows.weight(rows.batch([place])) > 0]
    places = counted[:_MOST] if len(counted) > 2 else list(range(min(_MOST, rows.num_examples)))
    once, twice = (probe.loss(rows.batch(places * times)) for times in (1, 2))
    growth = twice / once if once else float("nan")
    numbers = {"loss of all twice / once": growth}
    if abs(growth - 1) < max(_LOOSE, probe.tolerance):  # a divisor may have a little added, against 0
        shares = _shares(probe, rows, places)
        if shares is not None:
            divisor = _divisor(rows, places, shares)
            depends = not divisor and _depends_on_output(probe, rows, places, shares)
            return Shape(True, divisor, depends, numbers=numbers)
    mixed = _mixed_difference(probe, rows)
    return Shape(is_interaction=mixed, growth=growth, numbers=numbers)


def _shares(probe: Probe, rows: Rows, places: list[int]) -> list[float] | None:
    """What each example's part of the divisor is, relative to the first's; None: no mean explains the losses."""
    alone = [probe.loss(rows.batch([place])) for place in places]
    shares = [1.0]
    scale = max(map(abs, alone)) or 1.0
    known = [0]
    for i, place in enumerate(places[1:], 1):
        pair = probe.loss(rows.batch([places[0], place]))
        # With little between them, how much each counts does not show.
        if abs(alone[0] - alone[i]) < 1e-4 * scale or abs(pair - alone[i]) < 1e-12 * scale:
            shares.append(float("nan"))
            continue
        shares.append((alone[0] - pair) / (pair - alone[i]))
        known.append(i)
    if any(not 0 < shares[i] < float("inf") for i in known):
        return None
    for some in filter(None, (known, known[1:], known[::-1][:2], known[:3])):
        expected = sum(shares[i] * alone[i] for i in some) / sum(shares[i] for i in some)
        if abs(probe.loss(rows.batch([places[i] for i in some])) - expected) > _LOOSE * scale:
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
        rest = [place for place in range(n) if place not in (a, b, other, beside)]  # of two alone much is 0
        for more in ([], rest) if rest else ([],):
            batches = ([a, b, *more], [other, b, *more], [a, beside, *more], [other, beside, *more])
            try:
                both, changed, moved, both_changed = (probe.loss(rows.batch(places)) for places in batches)
            except Exception:  # of the user's loss, of few examples
                continue
            size = max(map(abs, (both, changed, moved, both_changed)))
            if abs(both - changed - moved + both_changed) > max(1e-8, 10 * probe.tolerance) * size:
                return True
    return False
