"""A model whose own forward fails on what the run gives it: said to the user, with what may avoid it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import nn

from hf_accum.config.recipe import RecipeConfig
from hf_accum.device.out_of_memory import NEVER_RETRIED, Failure, classify
from hf_accum.errors import NotFinite, OutOfMemory, RankFailed, UserError, first_line
from hf_accum.models.precision import in_float32

Again = Callable[[nn.Module, str], object]
"""Runs a forward of a model in a precision of accelerate's."""


@contextmanager
def naming_forward_failure(
    model: nn.Module, config: RecipeConfig, precision: str, again: Again | None = None
) -> Iterator[None]:
    """Turn an error that comes out of the model's forward into one of the user's choice of a model.

    Many architectures take not all lengths, types of numbers or adapters. Errors of other places, and a
    device's own, as memory that runs out, are left as they are. `precision` is accelerate's. Float32, and no
    adapters, are named as ways out where `again` fails as it is and does not so; the model is of no use afterwards.

    Raises:
        UserError: naming the model's class, what it said, and the ways out.
    """
    try:
        yield
    except (UserError, OutOfMemory, NotFinite, RankFailed):
        raise
    except Exception as error:
        is_of_device = classify(error) is not Failure.OTHER or any(text in str(error) for text in NEVER_RETRIED)
        if is_of_device or not _is_in_forward(error.__traceback__, set(model.modules())):
            raise
        kind = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__  # type: ignore[operator]
        ways = [*([] if again is None else _ways_out(model, config, precision, again)), "another `model`"]
        said = "in float32" if precision == "no" else f"in {precision}"
        raise UserError(
            f"`model`: a {kind} fails in its own forward {said} ({first_line(error)}); what avoids it: "
            f"{', '.join(ways)}; `debug true` shows where"
        ) from error


def _ways_out(model: nn.Module, config: RecipeConfig, precision: str, again: Again) -> list[str]:
    """Those that are seen to work, where the failure is seen again."""
    from peft import PeftModel

    if _works(lambda: again(model, precision)):
        return []
    ways = []
    if precision != "no":
        with in_float32(model):
            if _works(lambda: again(model, "no")):
                ways.append("accelerate's mixed_precision no computes it in float32")
    if config.lora.rank and isinstance(model, PeftModel) and _works(lambda: again(model.unload(), precision)):
        ways.append("`lora.rank 0` trains it without adapters")
    return ways


def _works(run: Callable[[], object]) -> bool:
    try:
        with torch.no_grad():
            run()
    except Exception:
        return False
    return True


def _is_in_forward(traceback: TracebackType | None, modules: set[nn.Module]) -> bool:
    while traceback is not None:
        frame = traceback.tb_frame
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "forward" and isinstance(owner, nn.Module) and owner in modules:
            return True
        traceback = traceback.tb_next
    return False
