"""Tensors of less than float64 that meet a model in float64 are taken as float64 where torch refuses to mix them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hf_accum.accumulation.batch_parts import leaves, map_tensors


class Promotion(TorchFunctionMode):
    """Inside, what a loss or a module brings of its own in float32 goes with a copy in float64.

    Class weights, a fixed matrix, another model, a `.float()` before a layer: right where all is float32, and
    refused by torch beside float64. A function that refuses is called once more with its floating tensors in float64;
    one that writes into a tensor, with the others as that one is. A softmax that is asked for in float32 stays in
    float64: the least number of that type, with which masks are made, is none in float32, and spoils the gradient.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") == torch.float32 and "softmax" in getattr(func, "__name__", ""):
            kwargs |= {"dtype": torch.float64} if args[0].dtype == torch.float64 else {}
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            dtypes = {tensor.dtype for _, tensor in leaves([args, kwargs]) if tensor.is_floating_point()}
            if len(dtypes) < 2 or torch.float64 not in dtypes:
                raise
            wanted = args[0].dtype if args and _writes(func) and isinstance(args[0], Tensor) else torch.float64
            change = _to(wanted)
            return func(*map_tensors(args, change), **map_tensors(kwargs, change))


def _writes(func: Any) -> bool:
    name: str = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _to(dtype: torch.dtype) -> Callable[[str, Tensor], Tensor]:
    return lambda _, tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
