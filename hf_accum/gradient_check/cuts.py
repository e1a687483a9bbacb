"""The gradient of one unsplit batch beside that of the same examples in pieces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from hf_accum.errors import UserError, first_line
from hf_accum.gradient_check.loss_shape import Shape, shape_of
from hf_accum.gradient_check.probe import Difference, Probe, compare
from hf_accum.gradient_check.report import Finding
from hf_accum.gradient_check.rows import Rows
from hf_accum.gradient_check.trace import by_example, calls_of, class_of, first_difference, kind_of

Cut = tuple[tuple[int, ...], ...]
"""Places of examples, a tuple for each piece."""
MEANS = ("mean_of_means", "count_ignored", "weight_of_output")
"""The kinds of losses that are divided by the batch that they see."""
_MOST_ALONE = 6  # examples that are run alone, each with all modules' results


@dataclass(frozen=True)
class Compared:
    """A cut, and how far its gradient is off; None: a piece could not be computed, for a reason."""

    name: str
    cut: Cut
    difference: Difference | None
    failed: str = ""


def cuts_of(num_examples: int) -> dict[str, Cut]:
    """Cuts of so many examples, by their names: one batch in another order first."""
    places = tuple(range(num_examples))
    half, third = num_examples // 2, max(1, num_examples // 3)
    uneven = max(1, num_examples // 4)
    ranks = [tuple(places[rank::2]) for rank in (0, 1)]
    return {
        "another order": (places[::-1],),
        "single examples": tuple((place,) for place in places),
        "2 pieces": (places[:half], places[half:]),
        "3 pieces": (places[:third], places[third : 2 * third], places[2 * third :]),
        "uneven pieces": (places[:uneven], places[uneven:-1], places[-1:]),
        "2 ranks": (*((place,) for place in ranks[0]), ranks[1]),
    }


def compare_cuts(probe: Probe, rows: Rows, weigh: Callable[[Any], float]) -> list[Compared]:
    """The gradient of each cut, divided by its weight, beside that of the unsplit batch."""
    whole = rows.batch(range(rows.num_examples))
    right = probe.gradient([whole]).over(weigh(whole))
    found = []
    for name, cut in cuts_of(rows.num_examples).items():
        batches = [rows.batch(piece) for piece in cut]
        try:
            gradient = probe.gradient(batches)
        except Exception as error:  # of the user's loss, of few examples
            found.append(Compared(name, cut, None, first_line(error)))
            continue
        found.append(Compared(name, cut, compare(gradient.over(sum(map(weigh, batches))), right)))
    return found


def off(compared: Sequence[Compared], tolerance: float) -> list[Compared]:
    """Those that differ, or could not be computed; the worst first."""
    wrong = [c for c in compared if c.difference is None or not c.difference.relative <= tolerance]
    return sorted(wrong, key=lambda c: float("-inf") if c.difference is None else -c.difference.relative)


def find_cut_dependence(probe: Probe, rows: Rows) -> tuple[list[Finding], dict[str, float]]:
    """What makes the gradient depend on the cut; and the largest difference of each cut."""
    weights = _find_weights(rows)
    findings = [] if weights is None else [weights]
    if weights is None and rows.weight(rows.batch(range(rows.num_examples))) == 0:
        raise UserError("rows that weigh 0 together: none has a label that counts; a check needs some that do")

    def weigh(batch: Any) -> float:
        return rows.weight(batch) if weights is None else rows.counts(batch)["examples"]

    compared = compare_cuts(probe, rows, weigh)
    wrong = off(compared, probe.tolerance)
    said = {c.name: float("nan") if c.difference is None else c.difference.relative for c in compared}
    if wrong and (statistics := _statistics(probe.model)):
        for module in statistics.values():
            module.eval()
        again = compare_cuts(probe, rows, weigh)
        still = off(again, probe.tolerance)
        if any(_changes(before, after) for before, after in zip(compared, again, strict=True)):
            findings.append(_of_statistics(statistics, wrong[0]))
        wrong = still
    finite = [c for c in wrong if c.difference is not None and c.difference.relative < float("inf")]
    if wrong:
        findings.append(_explained(probe, rows, finite or wrong))
    is_mean = any(finding.kind in MEANS for finding in findings)
    if spoilt := _not_finite(probe, rows, wrong, is_mean):
        findings.append(spoilt)
    return findings, said


def _not_finite(probe: Probe, rows: Rows, wrong: Sequence[Compared], is_mean: bool) -> Finding | None:
    """Of cuts whose gradient is not finite; of a mean pieces that weigh nothing are none."""
    numbers = {}
    for compared in wrong:
        if compared.difference is None or compared.difference.relative < float("inf"):
            continue
        batches = [rows.batch(piece) for piece in compared.cut]
        spoilt = [batch for batch in batches if not probe.gradient([batch]).is_finite]
        if any(not is_mean or rows.weight(batch) > 0 for batch in spoilt):
            numbers[f"pieces of {compared.name} that are not finite"] = float(len(spoilt))
    if not numbers:
        return None
    why = "the loss or its gradient is not finite for some of the examples by themselves, where that of all is"
    way_out = "divide by nothing that may be 0 for few examples; a deviation of a single one is none"
    return Finding("not_finite", "fault", why, way_out, numbers)


def _changes(before: Compared, after: Compared) -> bool:
    if before.difference is None or after.difference is None:
        return after.difference is not None
    return abs(after.difference.relative - before.difference.relative) > 1e-6


def numbers_of(compared: Compared) -> dict[str, float]:
    """Of a cut's gradient, beside that of the unsplit batch."""
    if compared.difference is None:
        return {"pieces": len(compared.cut)}
    return {
        "pieces": len(compared.cut),
        "norm / unsplit": compared.difference.norm_ratio,
        "largest relative difference": compared.difference.relative,
    }


def _at(compared: Compared) -> tuple[str, ...]:
    return () if compared.difference is None else (compared.difference.parameter,)


def _statistics(model: nn.Module) -> dict[str, nn.Module]:
    """BatchNorm layers, and others that keep running statistics, in train mode."""
    return {
        name: module
        for name, module in model.named_modules()
        if module.training and (isinstance(module, _BatchNorm) or hasattr(module, "running_mean"))
        if getattr(module, "running_mean", None) is not None and not isinstance(module, _InstanceNorm)
    }


def _of_statistics(statistics: dict[str, nn.Module], worst: Compared) -> Finding:
    names = tuple(f"{name} ({type(module).__name__})" for name, module in statistics.items())
    why = (
        f"{len(names)} {'layers normalise' if len(statistics) > 1 else 'layer normalises'} by the batch seen, "
        f"{names[0]} first: with the statistics that are kept the gradient does not depend on the cut by it"
    )
    if worst.failed:
        why += f"; {worst.name} cannot be computed at all ({worst.failed})"
    way_out = "keep these layers in eval mode (frozen statistics), or use GroupNorm or LayerNorm"
    return Finding("batch_statistics", "fault", why, way_out, numbers_of(worst), (*names, *_at(worst)))


def _find_weights(rows: Rows) -> Finding | None:
    """Whether the weights of pieces add up, and come from the batch alone."""
    whole = rows.batch(range(rows.num_examples))
    called = _modules_called(lambda: rows.weight(whole))
    if called:
        why = f"`weight` calls a model ({called}): the weight is to be known of the batch alone, before any forward"
        way_out = "count the labels that count, or the examples; multiply each item's loss in the sum instead"
        return Finding("weight_of_output", "fault", why, way_out, {"weight": rows.weight(whole)}, (called,))
    total = rows.weight(whole)
    for name, cut in cuts_of(rows.num_examples).items():
        parts = sum(rows.weight(rows.batch(piece)) for piece in cut)
        if abs(parts - total) > 1e-9 * max(abs(total), abs(parts)):
            why = f"`weight` of {name} adds up to {parts:g}, of the unsplit batch it is {total:g}"
            way_out = "count the labels that count, or the examples"
            return Finding("unexplained", "fault", why, way_out, {"unsplit": total, "in pieces": parts}, ("weight",))
    return None


def _modules_called(work: Callable[[], Any]) -> str:
    """The class of the first module that is called by some work; '' where none is."""
    called: list[str] = []
    handle = nn.modules.module.register_module_forward_pre_hook(lambda m, _: called.append(type(m).__name__))
    try:
        work()
    finally:
        handle.remove()
    return called[0] if called else ""


def _explained(probe: Probe, rows: Rows, wrong: Sequence[Compared]) -> Finding:
    """Why cuts differ, by what the losses of some of the examples are."""
    worst = wrong[0]
    if worst.difference is None:
        why = f"the gradient of {worst.name} cannot be computed: {worst.failed}; that of the unsplit batch can"
        way_out = "make the loss of a single example computable: the last micro-batch of a window may have one"
        return Finding("unexplained", "fault", why, way_out, numbers_of(worst), ())
    numbers, where = numbers_of(worst), _at(worst)
    most = f" The largest difference is in {where[0]}, of {worst.name}."
    seen_in = _interacting_module(probe, rows)
    shape = shape_of(probe, rows)
    if shape.is_mean and seen_in is None:
        return _of_mean(probe, rows, shape, numbers, where, most)
    if seen_in is not None and "norm" in class_of(probe, seen_in).__name__.lower():
        why = f"{kind_of(probe, seen_in)} gives an example another result beside others than alone." + most
        way_out = "normalise each example by itself (LayerNorm, GroupNorm), or by statistics that are kept"
        return Finding("batch_statistics", "fault", why, way_out, numbers, (kind_of(probe, seen_in), *where))
    if seen_in is not None or shape.is_interaction:
        if seen_in is not None:
            why = f"{kind_of(probe, seen_in)} gives an example another result beside others than alone." + most
            where = (kind_of(probe, seen_in), *where)
        else:
            why = (
                "what an example adds to the loss depends on which others are there, though the model's outputs do "
                "not: the loss compares examples (in-batch negatives), or adds a term of the whole batch (the "
                "balance of experts)." + most
            )
        way_out = (
            "of in-batch negatives keep the representations first (GradCache, as recipes.term_retrieval does); of a "
            "balancing loss leave it out, or sum it by example"
        )
        return Finding("interaction", "fault", why, way_out, numbers | shape.numbers, where)
    order = next((c for c in wrong if c.name == "another order"), None)
    why = f"the gradient of {worst.name} is another than the unsplit batch has, by no cause that is looked for."
    if order:
        why += " One batch in another order differs too: the loss depends on the places of the examples."
    elif abs(shape.growth - 2) > 1e-6:
        why += (
            f" With each example twice the loss is {shape.growth:.4g} times as large, a sum is 2 times: a part of "
            "it is a mean, or is there once in each batch (a penalty on the weights), or it is scaled by the count."
        )
    why += most
    way_out = "compare the loss of two examples together with the sum of both alone, and look for what is not a sum"
    return Finding("unexplained", "fault", why, way_out, numbers | shape.numbers, where)


def _interacting_module(probe: Probe, rows: Rows) -> str | None:
    """The first module that gives an example another result beside others than alone, or in a pair."""
    n = rows.num_examples
    together = calls_of(probe, rows.batch(range(n)))
    for size, first in [(1, place) for place in range(min(n, _MOST_ALONE))] + [(2, 0), (2, n - 2)]:
        try:
            few = calls_of(probe, rows.batch(range(first, first + size)))
        except Exception:  # of a model that takes no single example
            continue
        found = first_difference(together, few, probe.tolerance, by_example(first, n, size))
        if found is not None:
            return found
    return None


def _of_mean(
    probe: Probe, rows: Rows, shape: Shape, numbers: dict[str, float], where: tuple[str, ...], most: str
) -> Finding:
    numbers = numbers | shape.numbers
    if shape.depends_on_output:
        why = (
            "the loss is divided by something that depends on the model's output: with other weights of the model "
            "the examples count otherwise beside each other." + most
        )
        way_out = "divide by what is known before the forward (labels, examples); drop the division from the loss"
        return Finding("weight_of_output", "fault", why, way_out, numbers, where)
    of = f"over {shape.divisor}" if shape.divisor else "by weights of the labels"
    if probe.count_given:
        why = (
            f"the model is given `num_items_in_batch`, and its own loss is a mean {of} all the same: each piece "
            "counts as much as a whole batch." + most
        )
        way_out = (
            "compute the loss from the logits, summed, as hf_accum.CrossEntropy does, and hand the model no labels"
        )
        return Finding("count_ignored", "fault", why, way_out, numbers, where)
    why = f"the loss is a mean {of}, where a sum is needed: the gradient grows with the number of pieces." + most
    way_out = "return the sum (reduction='sum'); of the model's own loss with labels: compute it from the logits"
    return Finding("mean_of_means", "fault", why, way_out, numbers, where)
