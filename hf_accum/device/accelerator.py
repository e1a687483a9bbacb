"""What an accelerator has of memory, and what its caching allocator says of itself."""

from contextlib import suppress

import torch

from hf_accum.byte_sizes import format_bytes
from hf_accum.device.out_of_memory import empty_cache
from hf_accum.errors import UserError, first_line

WHO_HAS_IT = "what has the rest is not known here (for NVIDIA's, `nvidia-smi` lists the processes)"
ANOTHER_ONE = "end that process, or choose another device (CUDA_VISIBLE_DEVICES)"


def available_bytes(device: torch.device) -> tuple[int, int]:
    """What an accelerator has for this process, and in all: free, or held by the process's own allocator.

    Raises:
        UserError: as `memory_info` does.
    """
    memory_info(device)  # whether it counts at all
    empty_cache(device)
    free, total = memory_info(device)
    return free + torch.accelerator.memory.memory_reserved(device), total


def check_budget(device: torch.device, budget_bytes: int, available: int, total: int) -> None:
    """Refuse a budget that an accelerator has not.

    Raises:
        UserError: saying what is free.
    """
    if budget_bytes > available:
        raise UserError(
            f"`memory_budget` {format_bytes(budget_bytes)}: {device} has {format_bytes(total)}, of which "
            f"{format_bytes(available)} are free for this run; {WHO_HAS_IT}; give less, or auto, or {ANOTHER_ONE}"
        )


def memory_info(device: torch.device) -> tuple[int, int]:
    """Free and total bytes of an accelerator.

    Raises:
        UserError: if its backend does not say, or does not count what a run uses.
    """
    try:
        torch.accelerator.memory.reset_peak_memory_stats(device)
        try:
            return torch.accelerator.memory.get_memory_info(device)
        except RuntimeError:
            module = torch.get_device_module(device)
            if not hasattr(module, "recommended_max_memory"):
                raise
            total = module.recommended_max_memory()  # MPS, which shares the machine's memory
            return max(0, total - module.driver_allocated_memory()), total
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"`micro_batch_size` auto, or a `memory_budget`: torch {torch.__version__} does not count memory on "
            f"{device} ({first_line(error)}); give a number as `micro_batch_size`, and leave the other at auto; a "
            "loop of one's own gives `micro_batches` a number"
        ) from error


def reserved_and_retries(device: torch.device) -> tuple[int, int] | None:
    """What an accelerator's allocator holds at most so far, and how often it had to free and ask again.

    None where there is no such allocator, and where it does not count.
    """
    if device.type == "cpu":
        return None
    try:
        statistics = torch.accelerator.memory.memory_stats(device)
        return int(torch.accelerator.memory.max_memory_reserved(device)), int(statistics.get("num_alloc_retries", 0))
    except RuntimeError:
        return None


def begin_counting(device: torch.device) -> None:
    """Give back what the tuning held, and count peaks from here on: those of the training."""
    empty_cache(device)
    if device.type != "cpu":
        with suppress(RuntimeError):
            torch.accelerator.memory.reset_peak_memory_stats(device)
