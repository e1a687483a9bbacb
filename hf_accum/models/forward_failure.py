"""A model whose own forward fails on what the run gives it: said to the user, with what may avoid it."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from torch import nn

from hf_accum.config.recipe import RecipeConfig
from hf_accum.device.out_of_memory import NEVER_RETRIED, Failure, classify
from hf_accum.errors import NotFinite, OutOfMemory, RankFailed, UserError, first_line


@contextmanager
def naming_forward_failure(model: nn.Module, config: RecipeConfig, precision: str) -> Iterator[None]:
    """Turn an error that comes out of the model's forward into one of the user's choice of a model.

    Many architectures take not all lengths, types of numbers or adapters. Errors of other places, and a
    device's own, as memory that runs out, are left as they are. `precision` is accelerate's.

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
        ways = ["another `model`"]
        if config.lora.rank:
            ways.insert(0, "`lora.rank 0` trains it without adapters")
        if precision != "no":
            ways.insert(0, "accelerate's mixed_precision no computes it in float32")
        said = "in float32" if precision == "no" else f"in {precision}"
        raise UserError(
            f"`model`: a {kind} fails in its own forward {said} ({first_line(error)}); what may avoid it: "
            f"{', '.join(ways)}; `debug true` shows where"
        ) from error


def _is_in_forward(traceback: TracebackType | None, modules: set[nn.Module]) -> bool:
    while traceback is not None:
        frame = traceback.tb_frame
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "forward" and isinstance(owner, nn.Module) and owner in modules:
            return True
        traceback = traceback.tb_next
    return False
