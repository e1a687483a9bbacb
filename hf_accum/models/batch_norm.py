"""BatchNorm with the statistics that a model came with, in training too.

Statistics of a micro-batch depend on how the window is cut, and are noise where it is small; with those of the
pre-training each example is computed by itself. The layers' weights and biases are trained as any others.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_accum.errors import UserError


class _Frozen:
    """A BatchNorm layer that stays in eval mode.

    On a CPU its input and its gradient are made contiguous: torch's backward in eval mode gives wrong gradients, in
    float64 too, for a single image of which one has the channels last and the other has not (behind it stands a net
    that flattens to tokens, say). Seen in torch 2.13; more images, and other devices, are right in any layout.
    """

    def train(self: Any, mode: bool = True) -> Any:
        """As any other module, but for the mode."""
        return nn.Module.train(self, False)

    def forward(self: Any, input: Tensor) -> Tensor:
        """As any other layer of the kind in eval mode, to the bit."""
        if input.device.type != "cpu":
            return _BatchNorm.forward(self, input)
        output = _BatchNorm.forward(self, input.contiguous())
        if output.requires_grad:
            output.register_hook(Tensor.contiguous)
        return output


class FrozenBatchNorm1d(_Frozen, nn.BatchNorm1d):
    """`nn.BatchNorm1d` in eval mode."""


class FrozenBatchNorm2d(_Frozen, nn.BatchNorm2d):
    """`nn.BatchNorm2d` in eval mode."""


class FrozenBatchNorm3d(_Frozen, nn.BatchNorm3d):
    """`nn.BatchNorm3d` in eval mode."""


_KINDS: dict[type, type] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
}
_WAY_OUT = "`batch_norm micro_batch` `lora.rank 0` trains it as it is"


def freeze_statistics(model: nn.Module) -> int:
    """Have a model's BatchNorm layers use and keep their running statistics, in whichever mode; returns their number.

    Raises:
        UserError: for one without such statistics, or of another kind (synchronised over ranks, say).
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    for name, layer in layers:
        if isinstance(layer, _Frozen):
            continue
        layer_is = f"`batch_norm` frozen: {name}, a {type(layer).__name__},"
        if type(layer) not in _KINDS:
            raise UserError(f"{layer_is} is a kind of BatchNorm that is not known here: {_WAY_OUT}")
        if layer.running_mean is None:
            raise UserError(f"{layer_is} has no statistics of its own: {_WAY_OUT}")
        layer.__class__ = _KINDS[type(layer)]
        layer.eval()
    return len(layers)


def has_frozen_statistics(model: nn.Module) -> bool:
    """Whether no BatchNorm layer of a model sees the micro-batch."""
    return all(isinstance(module, _Frozen) for module in model.modules() if isinstance(module, _BatchNorm))


def refuse_statistics_of_ranks(model: nn.Module, num_ranks: int) -> None:
    """Refuse to train layers that see the micro-batch on several ranks: only one rank's statistics would be saved.

    Raises:
        UserError: if there is such a layer, and more than one rank.
    """
    if num_ranks > 1 and not has_frozen_statistics(model):
        raise UserError(
            f"`batch_norm` micro_batch: has to be frozen on {num_ranks} ranks: each would keep statistics of its own "
            "images, and the saved model has room for one rank's; `batch_norm frozen`, or one process"
        )
