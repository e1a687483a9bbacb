"""The check of a loss: one unsplit batch beside cuts, orders, ranks, other padding and repeated runs, in float64."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hf_accum.gradient_check.cuts import find_cut_dependence
from hf_accum.gradient_check.expert_capacity import LOWEST, UNLIMITED, capacity_of, named, routers
from hf_accum.gradient_check.padding import find_padding
from hf_accum.gradient_check.probe import Gradient, Probe
from hf_accum.gradient_check.randomness import find_randomness, find_state
from hf_accum.gradient_check.report import Finding, Report
from hf_accum.gradient_check.rows import Rows, TensorRows
from hf_accum.gradient_check.short import find_not_finite
from hf_accum.gradient_check.stock import compare_stock_loops, labelled
from hf_accum.seeding import keeping_random_state


def check(
    model: nn.Module,
    summed_loss: Callable[[nn.Module, Any], Tensor],
    batches: Sequence[Any],
    *,
    weight: Callable[[Any], float | Tensor] | None = None,
    pad_token_id: int | None = None,
    stock: bool = True,
    deterministic: bool = False,
    name: str = "",
) -> Report:
    """Is the gradient of `summed_loss` the same, however a batch is cut? What differs, why, and the way out.

    `batches` are real ones, of 4 examples at least in all: mappings, tuples or dataclasses of tensors with the
    examples along the first dimension. One unsplit batch is made of them. `summed_loss(model, batch)` is what
    training runs: a scalar, summed over the batch. `weight(batch)` is what the sum is divided by; None: the number of
    labels that count, or of examples. `pad_token_id`: None is that of the model's config.

    The model is left as it is: a deep copy is put into float64, and train mode if the whole of it is in eval mode.
    Takes some 30 forwards and 12 backwards of the unsplit batch. `stock`: also what the Trainer and a plain loop on
    accelerate compute, where the batches have the labels of a transformers model. `deterministic`: random numbers are
    a fault.

    Raises:
        UserError: for batches that cannot be one, a loss that is no number, or that does not come from the model.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> batch = {"x": torch.randn(8, 3), "labels": torch.arange(8) % 2}
        >>> def mean_loss(model, batch):
        ...     return torch.nn.functional.cross_entropy(model(batch["x"]), batch["labels"])
        >>> check(model, mean_loss, [batch]).kinds
        ('mean_of_means',)
    """
    config = getattr(model, "config", None)
    if pad_token_id is None:
        pad_token_id = _number(getattr(config, "pad_token_id", None))
    positions = _number(getattr(config, "max_position_embeddings", None))
    has_mask = (
        "attention_mask" in inspect.signature(model.forward).parameters if isinstance(model, nn.Module) else True
    )
    rows = TensorRows(batches, weight, pad_token_id, positions, has_mask=has_mask)
    labelled_batch = labelled(model, rows.whole) if stock else None
    return check_rows(
        model,
        summed_loss,
        rows,
        stock_model=model,
        stock_batch=labelled_batch,
        deterministic=deterministic,
        name=name,
    )


def check_rows(
    model: nn.Module,
    summed_loss: Callable[[nn.Module, Any], Tensor],
    rows: Rows,
    *,
    stock_model: nn.Module | None = None,
    stock_batch: Mapping[str, Tensor] | None = None,
    deterministic: bool = False,
    name: str = "",
    notes: Sequence[str] = (),
) -> Report:
    """The same of rows of any kind; the stock loops on `stock_batch`, a mapping that has the model's labels.

    Raises:
        UserError: as `check` does.
    """
    with ExitStack() as contexts:
        contexts.enter_context(keeping_random_state(_device_of(model)))
        contexts.enter_context(torch.enable_grad())
        probe = Probe(model, summed_loss)
        found = list(notes)
        if probe.was_in_eval_mode:
            found.append("the model was in eval mode: its copy was put into train mode")
        findings, compared, not_compared = _find(probe, rows, deterministic)
        if probe.computes_less:
            used = "16 bits are" if probe.computes_16_bits else "float32 is"
            found.append(f"{used} used inside: differences below {probe.tolerance:g} are taken for its rounding")
        loops = ()
        if stock_model is not None and stock_batch is not None:
            loops, why_not = compare_stock_loops(stock_model, stock_batch, probe.model)
            not_compared += why_not
    return Report(
        name or type(model).__name__,
        rows.num_examples,
        sum(parameter.numel() for parameter in model.parameters()),
        probe.tolerance,
        tuple(findings),
        compared,
        tuple(not_compared),
        loops,
        tuple(found),
    )


def _find(probe: Probe, rows: Rows, deterministic: bool) -> tuple[list[Finding], dict[str, float], list[str]]:
    whole = rows.batch(range(rows.num_examples))
    few = rows.batch(range(2))
    probe.watch(few)
    findings, is_same = find_randomness(probe, few, without=deterministic)
    if is_same:
        more, is_same = find_randomness(probe, whole, without=deterministic, num_seeds=2)
        findings += more
    if not is_same:
        return findings, {}, ["cuts, padding and short texts: the same batch does not give the same loss"]
    findings += find_state(probe, few)
    right = probe.gradient([whole])
    if not right.is_finite:
        why = "the loss or its gradient is not finite for the unsplit batch itself"
        way_out = "look at the loss of these rows: a division by 0, or a root or logarithm of what has none"
        findings.append(Finding("not_finite", "fault", why, way_out, {"loss of the unsplit batch": right.loss}))
        return findings, {}, ["cuts, padding and short texts: the unsplit batch has no gradient to compare with"]
    findings += _without_gradient(right)
    of_cuts, compared = find_cut_dependence(probe, rows)
    if limited := _of_capacity(probe, rows):
        of_cuts = [limited, *(finding for finding in of_cuts if finding.kind != limited.kind)]
    findings += of_cuts
    of_padding, more, not_compared = find_padding(probe, rows)
    seen = {place for finding in of_cuts for place in finding.where[:1]}
    findings += [finding for finding in of_padding if finding.where[:1] == () or finding.where[0] not in seen]
    of_short, not_tried = find_not_finite(probe, rows, findings)
    return findings + of_short, compared | more, not_compared + not_tried


def _of_capacity(probe: Probe, rows: Rows) -> Finding | None:
    """Whether tokens of other examples take an example's places at experts, once there are more than these take."""
    if not routers(probe.model):
        return None
    found: list[Finding] = []
    for number in (UNLIMITED, LOWEST):
        with capacity_of(probe.model, number):
            found = [finding for finding in find_cut_dependence(probe, rows)[0] if finding.kind == "interaction"]
        if number == UNLIMITED and found:
            return None  # by something else
    if not found:
        return None
    why = (
        f"experts leave out tokens by how many the whole batch has, by {named(probe.model)}: seen with experts that "
        f"take {LOWEST} token"
    )
    way_out = "set it above the tokens of any micro-batch, padding included; or run each example by itself"
    return Finding("interaction", "fault", why, way_out, found[0].numbers, found[0].where)


def _without_gradient(right: Gradient) -> list[Finding]:
    names = right.without
    if not right.norm:
        why = "the whole gradient is 0: whatever is compared with it says nothing"
        way_out = "check with rows and weights of which the loss has a gradient"
        return [Finding("no_gradient", "warning", why, way_out, {"loss": right.loss}, names)]
    if not names:
        return []
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    why = f"the loss does not depend on {listed}, though `requires_grad` says that they are trained"
    way_out = (
        "set `requires_grad` to False where it is wanted; else look for a `detach`, or a part that is not called"
    )
    return [Finding("no_gradient", "warning", why, way_out, {"parameters without": float(len(names))}, names)]


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _device_of(model: Any) -> torch.device | None:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return None if parameter is None or parameter.device.type == "meta" else parameter.device
