"""A classifier's trained head: whether it tells the labels that are wanted, and a new one in its place."""

from typing import TYPE_CHECKING, Any

import torch

from hf_accum.errors import UserError
from hf_accum.models.quantization import head_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def trained_head(model: "PreTrainedModel", task_type: str | None) -> list[str]:
    """A classifier's modules beside its backbone; of other tasks (a language model's head) none.

    `task_type` is that of a `ModelSpec`.
    """
    return head_modules(model) if task_type in ("SEQ_CLS", "TOKEN_CLS", None) else []


def other_labels(of_head: Any, wanted: Any) -> list[str] | None:
    """The labels that a trained head has, if they are others than are wanted, or in another order."""
    if not isinstance(of_head, dict) or not isinstance(wanted, dict):
        return None
    known = [str(label) for _, label in sorted(of_head.items(), key=lambda item: int(item[0]))]
    if known == list(wanted.values()) or known == [f"LABEL_{index}" for index in range(len(known))]:
        return None
    return known


def check_labels(name: str, of_head: Any, wanted: Any, way_out: str) -> None:
    """Refuse labels that a trained head has other names for, or in another order: it would be taught wrong.

    Raises:
        UserError: naming both; `way_out` is said beside others.
    """
    known = other_labels(of_head, wanted)
    if known is None:
        return
    shown = ", ".join(map(repr, known[:20])) + (", ..." if len(known) > 20 else "")
    in_order = sorted(known) == sorted(wanted.values())
    raise UserError(
        f"model {name!r}: its head tells {shown}, in this order, and the labels are {', '.join(wanted.values())}: "
        + ("give `labels` in the order of the head" if in_order else "give the model that it was made from")
        + way_out
        + ", or, where the data says the same by numbers or other names, give the head's names by `labels`, if "
        "the recipe has it"
    )


def renew_head(model: "PreTrainedModel") -> set[str]:
    """Draw the weights of a model's head anew, as those of one without pretrained weights; returns their names."""
    renewed: set[str] = set()
    for head in head_modules(model):
        for module in model.get_submodule(head).modules():
            for parameter in module.parameters(recurse=False):
                setattr(parameter, "_is_hf_initialized", False)  # noqa: B010 (transformers keeps what it has loaded)
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
            with torch.no_grad():
                model._init_weights(module)
        renewed |= {f"{head}.{name}" for name, _ in model.get_submodule(head).named_parameters()}
    return renewed
