"""What goes wrong unseen within a window: weights that move, parameters that are not of its models."""

import warnings
from collections.abc import Iterable, Sequence
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from hf_accum.errors import UserError

_hooked: "WeakSet[nn.Module]" = WeakSet()  # of which was said that they have hooks


class WindowGuard:
    """Made at a window's first micro-batch, asked at its last one.

    A hook on a gradient runs in each micro-batch, on its part of the gradient alone, before the ranks' are summed.
    It is warned of once for each model. Of what is trained the values are looked at, too (`norms_of`), in a window of
    `several` micro-batches: what goes by `.data` torch does not see.
    """

    def __init__(self, models: Sequence[nn.Module], *, several: bool = True) -> None:
        self._parameters = parameters_of(models)
        self._trained = [p.requires_grad for p in self._parameters]
        # A forward gives lazy ones their shape and values: the first, for all of them.
        replaced = _replaced_in_forwards(models)
        self._versions = [None if is_lazy(p) or id(p) in replaced else p._version for p in self._parameters]
        self._known = {id(p) for p in self._parameters}
        self._valued = [p for p in self._parameters if p.requires_grad and not is_lazy(p)] if several else []
        self._norms = norms_of(self._valued)
        self._num_steps = 0
        # Of optimizers whose kernels change weights unseen by torch, such as those of bitsandbytes.
        self._handle = register_optimizer_step_post_hook(self._note_step)
        for model in models:
            _warn_of_hooks(model)

    def close(self) -> None:
        """Watch no more."""
        self._handle.remove()

    def _note_step(self, optimizer: Optimizer, *_: object) -> None:
        self._num_steps += any(id(p) in self._known for group in optimizer.param_groups for p in group["params"])

    def check(self) -> None:
        """Refuse a window in which something has changed that its gradient hangs on.

        Raises:
            UserError: if a weight was changed in the window (by an optimizer's step, say), or a parameter was frozen
                or thawed.
        """
        versions = zip(self._parameters, self._versions, strict=True)
        num_moved = sum(before is not None and p._version != before for p, before in versions)
        if num_moved or self._num_steps:
            what = f"{num_moved} parameters were changed" if num_moved else "an optimizer of its model stepped"
            raise UserError(
                f"{what} within the window, so that its micro-batches had different weights: step the optimizer, and "
                "change weights (also those of which the forward keeps a moving average), behind the loop over its "
                "micro-batches"
            )
        if not torch.equal(norms_of(self._valued), self._norms):
            raise UserError(
                "weights were changed within the window unseen by torch, so that its micro-batches had different "
                "ones: a forward, or a hook, writes into the `.data` of what is trained; do that behind the loop "
                "over its micro-batches"
            )
        num_changed = sum(p.requires_grad != was for p, was in zip(self._parameters, self._trained, strict=True))
        if num_changed:
            raise UserError(
                f"{num_changed} parameters were frozen or thawed within the window, so that only some of its "
                "micro-batches count for them: set `requires_grad` between two windows"
            )

    def check_leaves(self, leaves: Iterable[Tensor]) -> None:
        """Refuse a loss with parameters of other models than the window's.

        Raises:
            UserError: saying how many, and the shape of one.
        """
        others = [leaf for leaf in leaves if isinstance(leaf, nn.Parameter) and id(leaf) not in self._known]
        if others:
            raise UserError(
                f"the loss trains {len(others)} parameters that are not of the model that `accumulate` was given "
                f"(one of shape {tuple(others[0].shape)}): their gradients would be kept where the window starts "
                "anew, and not be summed over the ranks; give it all of them, "
                "`accumulate(accelerator, [model, other], micro_batch)`"
            )


class TrainedTensors:
    """What the first loss of a window trains, and which tensors that are no parameters its second does too."""

    def __init__(self) -> None:
        self._leaves: list[Tensor] | None = None
        self._loose: list[ref[Tensor]] = []

    def look_at(self, loss: Tensor) -> None:
        """At each loss, before its backward.

        Raises:
            UserError: if this one and the first train a tensor that is no parameter, which so is none that the
                forward makes for itself (inputs that need a gradient).
        """
        if self._leaves is None:
            self._leaves = leaves_of(loss)
            self._loose = [ref(leaf) for leaf in self._leaves if not isinstance(leaf, nn.Parameter)]
        elif self._loose:
            now = {id(leaf) for leaf in leaves_of(loss)}
            kept = [leaf for leaf in (one() for one in self._loose) if leaf is not None and id(leaf) in now]
            self._loose = []
            if kept:
                raise UserError(
                    f"the losses train {len(kept)} tensors that are no parameters of a model (one of shape "
                    f"{tuple(kept[0].shape)}): their gradients would be kept where the window starts anew, and not "
                    "be summed over the ranks; make each an `nn.Parameter` of a model that `accumulate` is given, "
                    "or detach it"
                )

    def check(self, guard: WindowGuard) -> None:
        """Refuse a first loss that trains parameters of other models than the window's, once.

        Raises:
            UserError: if it does.
        """
        if self._leaves:
            leaves, self._leaves = self._leaves, []
            guard.check_leaves(leaves)


def parameters_of(models: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The parameters of some models, each once."""
    return list({id(p): p for model in models for p in model.parameters()}.values())


@torch.no_grad()
def norms_of(parameters: Sequence[Tensor]) -> Tensor:
    """Of each its norm, in one tensor: what tells whether they changed, without a copy of them. NaN counts as 0."""
    values = [p.detach() for p in parameters if p.is_floating_point()]
    return torch.stack([n.float() for n in torch._foreach_norm(values)]).nan_to_num() if values else torch.zeros(0)


def _replaced_in_forwards(models: Sequence[nn.Module]) -> set[int]:
    """Frozen weights with adapters of peft's for single parameters, of experts say: each forward sets them to
    themselves, which torch counts as a change.
    """
    found: set[int] = set()
    for model in models:
        for module in model.modules():
            if type(module).__name__ == "ParamWrapper" and hasattr(module, "get_base_layer"):
                parameter = getattr(module.get_base_layer(), str(module.parameter_name))  # type: ignore[operator]
                if not parameter.requires_grad:
                    found.add(id(parameter))
    return found


def leaves_of(loss: Tensor) -> list[Tensor]:
    """The tensors that a backward of the loss would give a gradient to (but those within reentrant checkpoints)."""
    found: list[Tensor] = []
    seen: set[torch.autograd.graph.Node] = set()
    waiting = [] if loss.grad_fn is None else [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)  # type: ignore[attr-defined] (of AccumulateGrad)
        waiting += [following for following, _ in node.next_functions if following is not None]
    return found


def _warn_of_hooks(model: nn.Module) -> None:
    if model in _hooked:
        return
    hooked = [name for name, p in model.named_parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]
    if hooked:
        _hooked.add(model)
        warnings.warn(
            f"{len(hooked)} parameters have hooks on their gradients ({hooked[0]}): these run in each micro-batch, "
            "on its part of the window's gradient, before the parts and the ranks are summed; what is no sum, such "
            "as clipping, belongs behind the loop over the micro-batches",
            stacklevel=2,
        )
