"""The types of weights: what they are multiplied in, and what those are kept in that are not trained."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError


def compute_dtype(precision: str) -> torch.dtype:
    """The type that weights are multiplied in: of accelerate's `precision`, no, bf16 or fp16."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def frozen_dtype(config: RecipeConfig, precision: str) -> torch.dtype:
    """What weights that are not trained are kept in; `auto`: in what they are multiplied in.

    Autocast keeps a 16-bit copy only of weights that are trained. One that is not is cast at every use, and the copy
    is kept for the backward: in float32 it takes 6 bytes, in 16 bits 2.

    Raises:
        UserError: if it is a 16-bit type that the run does not compute in.
    """
    computed_in = compute_dtype(precision)
    if config.lora.rank == 0:
        return torch.float32  # all of them are trained
    if config.frozen_dtype == "auto":
        return computed_in
    asked: torch.dtype = getattr(torch, config.frozen_dtype)
    if asked not in (torch.float32, computed_in):
        name = str(computed_in).removeprefix("torch.")
        allowed = "auto or float32" if computed_in == torch.float32 else f"auto, float32 or {name}"
        way_out = {torch.bfloat16: "bf16", torch.float16: "fp16"}[asked]
        raise UserError(
            f"`frozen_dtype` {config.frozen_dtype}: has to be {allowed} in a run that computes in {name}; "
            f"accelerate's mixed precision {way_out} computes in {config.frozen_dtype}"
        )
    return asked


def autocast_of(model: nn.Module) -> AbstractContextManager[Any]:
    """The context in which a model computes that has 16-bit weights, outside of accelerate's own; of others none."""
    types = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16}
    device = next(model.parameters()).device
    return torch.autocast(device.type, types.pop()) if types else nullcontext()


def compute_in(model: nn.Module, precision: str) -> None:
    """Have the forwards of a model compute in accelerate's `precision`, as those that accelerate has prepared do."""
    dtype, device, forward = compute_dtype(precision), next(model.parameters()).device, model.forward
    if dtype == torch.float32:
        return

    @wraps(forward)
    def in_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, dtype):
            return forward(*args, **kwargs)

    model.forward = in_autocast


_FEW_WEIGHTS = 2**28  # 1 GiB in float32


def fits_in_float32(model: nn.Module) -> bool:
    """Whether no weights of a model are quantised, and those of 16 bits so few that they can be in float32 too."""
    weights = list(model.parameters())
    is_plain = all(p.is_floating_point() and p.element_size() >= 2 for p in weights)
    return is_plain and sum(p.numel() for p in weights if p.element_size() == 2) <= _FEW_WEIGHTS


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Inside all weights of 16 bits are in float32, for forwards without a graph."""
    kept = [(p, p.data) for p in model.parameters() if p.element_size() == 2]
    try:
        for parameter, data in kept:
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def kept_in_float32(model: nn.Module, heads: Sequence[str]) -> list[str]:
    """The modules of a model that are in float32 whatever the others are: its heads, which are trained, and layers
    with running statistics, which sums of many small numbers go into.
    """
    statistics = [name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    return [*heads, *statistics]


@contextmanager
def loading_in_float32(kind: type[nn.Module], modules: Sequence[str]) -> Iterator[None]:
    """Have transformers load these modules of a class in float32, whatever type it is told for the rest."""
    name = "_keep_in_fp32_modules_strict"
    with patch.object(kind, name, {*(getattr(kind, name, None) or ()), *modules}):
        yield


def compute_in_dtype_of_autocast(model: nn.Module) -> None:
    """Keep peft from casting the inputs of adapters to float32, which autocast casts back: copies for nothing."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # type: ignore[assignment] (a plain attribute)
