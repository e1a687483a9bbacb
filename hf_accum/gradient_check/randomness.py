"""Which modules draw random numbers, found by running them under other seeds; and a copy without."""

import math
import random
from collections.abc import Iterable
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_accum.gradient_check.probe import Probe
from hf_accum.gradient_check.report import Finding
from hf_accum.gradient_check.trace import calls_of, class_of, first_difference
from hf_accum.models.dropout import random_fields

_MOST_KINDS = 12  # of modules that draw
_RAREST = 0.1  # probability that a draw shows in the loss: a layer of Wav2Vec2 is left out so often
_MISSED = 1e-4  # probability that it shows under none of the seeds, or under all
NUM_SEEDS = math.ceil(math.log(_MISSED) / math.log(1 - _RAREST))


def find_randomness(
    probe: Probe, batch: Any, *, without: bool, num_seeds: int = NUM_SEEDS
) -> tuple[list[Finding], bool]:
    """Whether two forwards differ, and by which modules; and whether the copy computes the same from the same now.

    First under the same seed, then under others, up to the first with another loss: `num_seeds` in all where numbers
    are drawn, two where none are. `without`: the model is said to draw no random numbers, so that any is a fault.
    """
    seeds = range(probe.seed + 1, probe.seed + num_seeds)
    same = [probe.loss(batch), probe.loss(batch)]
    if probe.differ(*same):
        modules, off = _turn_off(probe, batch, probe.seed, [probe.seed])
        numbers = {"loss of a first forward": same[0], "of the same again": same[1]}
        if off:
            why = (
                f"two forwards of one batch under one seed differ, by {_listed(modules)}: no seed sets what is drawn"
            )
            return [Finding("randomness", "fault", why, _DRAW_SEEDED, numbers, modules)], True
        where = f", first in {_listed(modules)}" if modules else ", by no module: the loss itself does"
        why = f"the same batch under the same seed gives another loss the second time{where}"
        return [Finding("state", "fault", why, _KEEP_NOTHING, numbers, modules)], False
    seed = _seed_that_matters(probe, batch, seeds)
    if seed is None:
        return [], True
    losses = [same[0], probe.loss(batch, seed)]
    fields = random_fields(getattr(probe.model, "config", None))
    modules, off = _turn_off(probe, batch, seed, seeds)
    numbers = {"loss under one seed": losses[0], "under another": losses[1]}
    if off:
        said = f", set in the config by {', '.join(fields)}" if fields else ""
        why = f"two forwards of one batch differ under other seeds, by {_listed(modules)}{said}"
        severity = "fault" if without else "warning"
        return [Finding("randomness", severity, why, _TURN_OFF, numbers, (*modules, *fields))], True
    where = f"also with these in eval mode: {_listed(modules)}" if modules else "by no module: the loss itself draws"
    why = f"two forwards of one batch differ under other seeds, {where}"
    return [Finding("randomness", "fault", why, _DRAW_SEEDED, numbers, (*modules, *fields))], False


_TURN_OFF = (
    "nothing, where it is wanted: the gradient is right for the numbers drawn, and runs with other cuts draw others; "
    "a dropout of 0 makes them the same run"
)
_DRAW_SEEDED = (
    "draw the numbers with the example, in its row, or leave them out: a micro-batch that is run again, or cut in "
    "another way, draws others"
)
_KEEP_NOTHING = "keep what a forward needs in its inputs, or in parameters: else an order or a replay changes it"


def _seed_that_matters(probe: Probe, batch: Any, seeds: Iterable[int]) -> int | None:
    """The first under which the loss is another than under the probe's own; None: all give the same.

    Where a forward draws nothing that a seed sets, one of them says as much as all.
    """
    loss, after = probe.loss(batch), _next_numbers(probe)
    probe.set_seed(probe.seed)
    draws = after != _next_numbers(probe)
    for seed in seeds:
        if probe.differ(loss, probe.loss(batch, seed)):
            return seed
        if not draws:
            break
    return None


def _next_numbers(probe: Probe) -> tuple[float, ...]:
    """What each generator would give next: another number if it was drawn of."""
    of_torch = (torch.rand((), dtype=torch.float64, device=device) for device in ("cpu", probe.device))
    return (random.random(), float(np.random.rand()), *map(float, of_torch))


def _turn_off(probe: Probe, batch: Any, seed: int, seeds: Iterable[int]) -> tuple[tuple[str, ...], bool]:
    """Put the modules that draw into eval mode, a kind after the other; which they are, and whether none is left.

    Under `seed` the loss is another than under the probe's own, in the beginning.
    """
    kinds: dict[str, str] = {}
    other: int | None = seed
    while other is not None:
        calls = [calls_of(probe, batch, probe.seed), calls_of(probe, batch, other)]
        name = first_difference(*calls, probe.tolerance)
        kind = None if name is None else class_of(probe, name)
        if name is None or kind is None or kind.__name__ in kinds or len(kinds) == _MOST_KINDS:
            return tuple(kinds.values()), False
        alike = [place for place, module in probe.model.named_modules() if type(module) is kind]
        kinds[kind.__name__] = f"{len(alike)} x {kind.__name__} ({alike[0] or 'the model'})"
        for place in alike:
            _keep_in_eval_mode(probe.model.get_submodule(place))
        other = _seed_that_matters(probe, batch, seeds)
    return tuple(kinds.values()), True


def find_state(probe: Probe, batch: Any) -> list[Finding]:
    """Whether a second forward in train mode computes another loss than the first, by buffers that it changed."""
    probe.keeps_buffers = False
    try:
        before = {name: buffer.clone() for name, buffer in probe.model.named_buffers()}
        losses = [probe.loss(batch), probe.loss(batch)]
        changed = tuple(
            name for name, buffer in probe.model.named_buffers() if not bool((buffer == before[name]).all())
        )
    finally:
        probe.keeps_buffers = True
    if not probe.differ(*losses):
        return []
    why = f"a second forward of the same batch gives another loss: the first has changed {_listed(changed)}"
    numbers = {"loss of a first forward": losses[0], "of the same again": losses[1]}
    return [Finding("state", "fault", why, _KEEP_NOTHING, numbers, changed)]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def turn_off_as_in(model: nn.Module, other: nn.Module) -> None:
    """Have the modules of a model draw nothing whose kind draws nothing in another one any more."""
    kinds = {type(module) for module in other.modules() if "train" in vars(module)}
    for module in model.modules():
        if type(module) in kinds:
            _keep_in_eval_mode(module)


def _keep_in_eval_mode(module: nn.Module) -> None:
    """The module itself draws no more, in whichever mode the model is; those inside it go on as they were."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        nn.Module.train(self, mode)
        self.training = False
        return self

    module.train = MethodType(train, module)
    module.training = False
