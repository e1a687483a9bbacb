"""Whether the gradient of a model depends on how windows are cut: asked of a few short texts, at a run's start."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from hf_accum.accumulation.example import Example
from hf_accum.device.out_of_memory import release
from hf_accum.errors import first_line
from hf_accum.gradient_check.expert_capacity import LOWEST, UNLIMITED, capacity_of, lowest_capacity, named, routers
from hf_accum.gradient_check.forwards import CannotCheck, Computed, Forwards, Group, most_tokens, set_seed
from hf_accum.gradient_check.layers import Layer, first_difference
from hf_accum.gradient_check.texts import thresholds
from hf_accum.models.dropout import random_fields
from hf_accum.models.precision import fits_in_float32
from hf_accum.models.state import keeping_state
from hf_accum.seeding import keeping_random_state

_LENGTHS = (6, 11, 17)  # no multiples of 8, to which cards pad
_NUM_IMAGES = 2
_BEYOND = (5, 9)  # tokens above a threshold
_SEEDS = (1, 2, 3, 4)  # a layer that is seldom left out may be there with the first ones
_ALONE = "`micro_batch_size 1` computes each by itself"


@dataclass(frozen=True)
class Fault:
    """Why a gradient depends on the cut: what was `seen`, its `cause`, and what avoids it, if anything does."""

    seen: str
    cause: str
    way_out: str = ""

    def __str__(self) -> str:
        return f"the gradient depends on how a window is cut: {self.seen}: {self.cause}"


def find_cut_dependence(
    computed: Computed, examples: Sequence[Example], *, without_dropout: bool = False, sees_batches: bool = False
) -> Fault | None:
    """Ask a model whether its loss and gradient depend on the cut, on a few of a run's examples; None: they do not.

    Three short texts (two images) are computed alone, padded together and alone again, and short ones with those
    around each length that the config names; with other random numbers too. What counts as the same is said in
    `hf_accum.gradient_check.forwards`. The model is asked in train mode; where it is random there, and that was asked
    for (not `without_dropout`), in eval mode. With `sees_batches` BatchNorm that sees the micro-batch was asked for,
    and is left out. Afterwards gradients, modes, buffers and the random state are as before.

    Raises:
        CannotCheck: if the model takes no such texts, or memory runs out.
    """
    model, device = computed.model, computed.device
    with keeping_random_state(device), keeping_state(model) as put_back:
        try:
            return _Check(Forwards(computed, examples), put_back, without_dropout, sees_batches).find()
        except Exception as error:
            reason = first_line(error)
            release(error, device)
    raise CannotCheck(f"whether the gradient depends on how a window is cut could not be found out ({reason})")


class _Check:
    def __init__(
        self, forwards: Forwards, put_back: Callable[[], None], without_dropout: bool, sees_batches: bool
    ) -> None:
        self._forwards, self._put_back = forwards, put_back
        self._computed, self._model = forwards.computed, forwards.model
        self._without_dropout, self._sees_batches = without_dropout, sees_batches
        longest = self._computed.max_length
        lengths = [min(length, longest) for length in _LENGTHS] if self._computed.vary else [longest] * _NUM_IMAGES
        self._short = [forwards.example(index, length) for index, length in enumerate(lengths)]

    def find(self) -> Fault | None:
        saved = _saved_buffers(self._model)
        before = [buffer.clone() for buffer in saved.values()]
        sums = _sums_of_parameters(self._model)
        fault = self._of_batch_norm() or self._of_random_numbers() or self._of_capacity() or self._of_texts()
        changed = [name for (name, buffer), was in zip(saved.items(), before, strict=True) if not _equal(buffer, was)]
        # First: torch does not see what goes by `.data`, and nothing puts it back.
        for (name, was), now in zip(sums.items(), _sums_of_parameters(self._model).values(), strict=True):
            if not _equal(now, was):
                return Fault(f"forwards changed the parameter {name}", "micro-batches of a window have other weights")
        if fault is None and changed:
            return Fault(f"forwards changed the buffer {changed[0]}", "what is saved depends on the micro-batches")
        return fault

    def _of_batch_norm(self) -> Fault | None:
        for name, module in self._model.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                if not self._sees_batches:
                    return Fault(f"{Layer.of(name, module)} is in train mode", "it sees the whole micro-batch")
                module.eval()
        return None

    # Random numbers

    def _of_random_numbers(self) -> Fault | None:
        seed, mode = self._seed_that_matters(), "without dropout"
        if seed and not self._without_dropout:
            self._model.eval()
            seed, mode = self._seed_that_matters(), "in eval mode"
        if not seed:
            return None
        loss, value, first = self._forwards.loss, self._forwards.value, self._short[0]
        layer = first_difference(self._model, lambda: loss(first), lambda: loss(first, seed=seed))
        fields = random_fields(getattr(self._model, "config", None))
        by = f", by `{'`, `'.join(fields)}` of its config" if fields else ""
        one, other = value(first), value(first, seed=seed)
        return Fault(
            f"the loss of one example is {one:.6g}, and {other:.6g} with other random numbers",
            f"the model is random {mode}{_first_in(layer)}{by}",
        )

    def _seed_that_matters(self) -> int:
        """One with which the loss is another than with the seed 0; 0: there is none."""
        first, device = self._short[0], self._computed.device
        set_seed(0)
        before = _random_state(device)
        group = Group(self._forwards, [first])
        (loss,) = group.losses
        if all(map(_equal, before, _random_state(device))):
            return 0  # none were drawn
        others = ((seed, self._forwards.value(first, seed=seed)) for seed in _SEEDS)
        return next((seed for seed, other in others if abs(loss - other) > group.least), 0)

    # Experts

    def _of_capacity(self) -> Fault | None:
        """Whether tokens take each other's places at an expert, once there are more than it takes."""
        computed = self._computed
        if not routers(self._model) or most_tokens(computed) <= lowest_capacity(self._model):
            return None
        with capacity_of(self._model, UNLIMITED):
            if self._of_cuts(Group(self._forwards, self._short), with_gradient=False):
                return None  # by something else
        with capacity_of(self._model, LOWEST):
            fault = self._of_cuts(Group(self._forwards, self._short), with_gradient=False)
        if fault is None:
            return None
        cause = f"experts leave out tokens by how many the whole micro-batch has, by {named(self._model)}"
        return Fault(f"with experts that take {LOWEST} token {fault.seen}", cause, _ALONE)

    # Alone, together, and again

    def _of_texts(self) -> Fault | None:
        """In mixed precision the losses are compared in float32 where they can be: roundings hide little there."""
        short = Group(self._forwards, self._short)
        if self._computed.autocast is None or not fits_in_float32(self._model):
            return self._of_cuts(short, with_gradient=True) or self._of_long_texts()
        with self._forwards.in_float32():
            fault = self._of_cuts(Group(self._forwards, self._short), with_gradient=False) or self._of_long_texts()
        return fault or self._of_cuts(short, with_gradient=True)

    def _of_long_texts(self) -> Fault | None:
        longest, config = self._computed.max_length, getattr(self._model, "config", None)
        if not self._computed.vary or config is None:
            return None
        for threshold, name in thresholds(config, longest).items():
            lengths = sorted({min(longest, threshold + beyond) for beyond in _BEYOND})
            long = [self._forwards.example(index, length) for index, length in enumerate(lengths, start=1)]
            short = max(self._short, key=lambda example: (example.length <= threshold, example.length))
            group = Group(self._forwards, [short, *long], f"`{name}` {threshold} of its config")
            if fault := (
                self._of_earlier_texts(group) or self._of_padding(group) or self._of_cuts(group, with_gradient=False)
            ):
                return replace(fault, way_out=f"`max_length {threshold}` keeps all texts below")
        return None

    def _of_earlier_texts(self, group: Group) -> Fault | None:
        """Whether the longest one is computed otherwise once a shorter one was run."""
        longest = group.examples[-1]
        self._begin_anew()
        first = self._forwards.value(longest)
        self._begin_anew()
        after = group.losses[-1]
        return None if group.is_close(first, after) else self._changed(group, longest, first, after)

    def _of_padding(self, group: Group) -> Fault | None:
        """Whether the shortest one is computed otherwise where it is padded: of the loss of all it may be little."""
        if len(group.that_fit().examples) == 1:
            return None
        shortest, longest = Group(self._forwards, group.examples[:1], group.beyond), group.examples[-1].length
        (alone,), padded = shortest.losses, self._forwards.value(*shortest.examples, longest=longest)
        if shortest.is_close(alone, padded):
            return None
        (example,) = shortest.examples
        seen = (
            f"the loss of a text of {example.length} tokens is {alone:.6g}, and {padded:.6g} where it is padded to "
            f"{longest}"
        )
        return Fault(seen, self._why_padded(example, longest) + _where(group), _ALONE)

    def _of_cuts(self, group: Group, with_gradient: bool) -> Fault | None:
        if with_gradient:
            _ = group.alone  # with their losses
        # Each but the last, backwards: what is left of a long text is seen in one that is shorter, but still long.
        for example, loss in reversed(list(zip(group.examples, group.losses, strict=True))[:-1]):
            if not group.is_close(loss, again := self._forwards.value(example)):
                return self._changed(group, example, loss, again)
        group = group.that_fit()
        if len(group.examples) == 1:
            return None  # each is always computed by itself
        if not with_gradient:
            together, gradient = self._forwards.value(*group.examples), None
        else:
            _ = group.alone
            together, gradient = self._forwards.with_gradient(group.examples)
        if not group.is_close(sum(group.losses), together):
            return self._why(group, together)
        if gradient is not None and not group.is_close_gradient(gradient):
            return self._of_gradient(group, gradient)
        return None

    def _of_gradient(self, group: Group, together: list[Tensor]) -> Fault:
        shares = [
            float((one - other).norm()) / max(float(one.norm()), 1e-30)
            for one, other in zip(group.gradient, together, strict=True)
        ]
        worst = max(range(len(shares)), key=shares.__getitem__)
        return Fault(
            f"the gradient of {group} by {self._forwards.trained[worst][0]} is {shares[worst]:.1%} off where they "
            "are computed together, at the same losses",
            "a single one goes backward in another way",
        )

    # Why

    def _changed(self, group: Group, example: Example, before: float, after: float) -> Fault:
        self._begin_anew()
        loss, others = self._forwards.loss, group.examples
        layer = first_difference(
            self._model, lambda: loss(example), lambda: loss(example), between=lambda: [loss(o) for o in others]
        )
        seen = f"the loss of a text of {example.length} tokens is {before:.6g}, and {after:.6g} once others were run"
        return Fault(seen, self._cause(layer, "forwards change the state of the model") + _where(group))

    def _begin_anew(self) -> None:
        """As before any forward, in the modes of now."""
        modes = {name: module.training for name, module in self._model.named_modules()}
        self._put_back()
        for name, module in self._model.named_modules():
            module.training = modes.get(name, self._model.training)

    def _why(self, group: Group, together: float) -> Fault:
        examples, loss, value = group.examples, self._forwards.loss, self._forwards.value
        longest, alone = examples[-1].length, sum(group.losses)
        share = abs(together - alone) / max(abs(alone), 1e-30)
        seen = f"the loss of {group} is {alone:.6g} one by one and {together:.6g} together ({share:.2g} of it off)"
        cause = ""
        for example in examples:
            if not group.is_close(value(example), value(example, longest=longest)):
                cause = self._why_padded(example, longest)
                break
        else:
            layer = first_difference(self._model, lambda: loss(examples[0], longest=longest), lambda: loss(*examples))
            cause = self._cause(layer, "examples of a micro-batch see each other")
        return Fault(seen, cause + _where(group), _ALONE)

    def _why_padded(self, example: Example, longest: int) -> str:
        loss = self._forwards.loss
        layer = first_difference(self._model, lambda: loss(example), lambda: loss(example, longest=longest))
        if layer is None:
            return "what reads the outputs of the last layer reads padding"
        return self._cause(layer, "padding reaches the result")

    def _cause(self, layer: Layer | None, otherwise: str) -> str:
        if layer is None or "rotary" not in layer.kind.lower():
            return otherwise + _first_in(layer)
        config: Any = getattr(self._model, "config", None)
        parameters = getattr(config, "rope_parameters", None)
        kind = parameters.get("rope_type") if isinstance(parameters, dict) else None
        by = "" if kind is None else f", by `rope_parameters` of its config (rope_type {kind})"
        return f"the frequencies of positions follow the longest text, in {layer}{by}"


def _first_in(layer: Layer | None) -> str:
    return "" if layer is None else f", first in {layer}"


def _where(group: Group) -> str:
    return f"; only with texts beyond {group.beyond}" if group.beyond else ""


def _saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that a checkpoint holds, but for running statistics."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in model.named_modules()
        if not isinstance(module, _NormBase)
        for key, buffer in module._buffers.items()
        if buffer is not None and key not in module._non_persistent_buffers_set
    }


def _sums_of_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What tells whether they changed, without a copy of them."""
    return {
        name: parameter.detach().sum(dtype=torch.float32)
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    }


def _random_state(device: torch.device) -> list[Any]:
    of_device = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]
    _, keys, position, *_ = np.random.get_state()
    return [random.getstate(), keys, position, torch.get_rng_state(), *of_device]


def _equal(one: Any, other: Any) -> bool:
    return bool((one == other).all()) if isinstance(one, Tensor | np.ndarray) else one == other
