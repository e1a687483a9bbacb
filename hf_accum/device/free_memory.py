"""Whether an accelerator has the memory for a run at all, asked before data and weights are read."""

from typing import Literal

import torch

from hf_accum.byte_sizes import format_bytes, parse_bytes
from hf_accum.device.accelerator import ANOTHER_ONE, WHO_HAS_IT, available_bytes, check_budget
from hf_accum.errors import UserError

_SHARE = 0.5  # of the device, below which somebody else has most of it


def check_free_memory(
    device: torch.device,
    micro_batch_size: int | Literal["auto"],
    memory_budget: str | int,
    weights_bytes: int,
) -> str | None:
    """A line for the user where others have most of the device; None where all is well, and on a CPU.

    `weights_bytes` are those of the model as it is loaded. One that is larger than the whole device is not spoken of
    here: what would fit is said where the capacity is looked for.

    Raises:
        UserError: where memory has to be counted (`micro_batch_size` auto, or a `memory_budget`) and is not; for a
            budget that is more than what is free; if others have left too little for the weights.
    """
    if device.type == "cpu":
        return None
    try:
        available, total = available_bytes(device)
    except UserError:
        if micro_batch_size == "auto" or memory_budget != "auto":
            raise
        return None
    if memory_budget != "auto":
        check_budget(device, parse_bytes(memory_budget), available, total)
    free = f"{device} has {format_bytes(total)}, of which {format_bytes(available)} are free for this run"
    if available < weights_bytes <= total:
        raise UserError(
            f"the weights of the model alone take {format_bytes(weights_bytes)}, and {free}; {WHO_HAS_IT}; "
            f"{ANOTHER_ONE}, or take a smaller `model`, or `quantization nf4`"
        )
    if memory_budget == "auto" and available < _SHARE * total:
        return f"{free}, and no more is used; {WHO_HAS_IT}; if that is too little, {ANOTHER_ONE}"
    return None
