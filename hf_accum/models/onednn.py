"""Linear layers by oneDNN, which torch has beside MKL, and takes by itself for types of fewer bits.

Which one is faster depends on the processor, and is measured: on two cores of an AMD EPYC with 512-bit instructions
oneDNN does 440 billion operations in float32 a second, MKL 200 (2026-11-30, 512 rows of 1,536, torch 2.13).
"""

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

_NUM_ROWS = 256
_NUM_TIMED = 5
_FASTER = 0.9  # of the time: by less the change is not worth it


class _OneDnnLinear(nn.Linear):
    """A linear layer without gradients."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")


def use_onednn_where_faster(model: nn.Module) -> bool:
    """Compute a model's linear layers by oneDNN, if that is faster here; whether it is.

    For float32 on a CPU, to be computed with alone: such layers have no backward. Outputs differ by rounding.
    """
    layers = [one for one in model.modules() if type(one) is nn.Linear and _is_plain(one.weight)]
    if not layers or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    shape, _ = Counter(layer.weight.shape for layer in layers).most_common(1)[0]
    layer = next(layer for layer in layers if layer.weight.shape == shape)
    rows = torch.ones(_NUM_ROWS, layer.in_features)
    with torch.no_grad():
        usual = _seconds(lambda: functional.linear(rows, layer.weight, layer.bias))
        other = _seconds(lambda: _OneDnnLinear.forward(layer, rows))  # type: ignore[arg-type]
    if other > _FASTER * usual:
        return False
    for layer in layers:
        layer.__class__ = _OneDnnLinear
    return True


def _is_plain(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and type(weight) in (Tensor, nn.Parameter)


def _seconds(work: Callable[[], Tensor]) -> float:
    """The least of some times, after a first one that is not counted."""
    times: list[float] = []
    for _ in range(1 + _NUM_TIMED):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times[1:])
