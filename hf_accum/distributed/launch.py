"""Starting accelerate on the processes of a run, as `accelerate launch` configured it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from hf_accum.distributed.collectives import refuse_strategies_that_talk
from hf_accum.distributed.ranks import TIMEOUT_MINUTES
from hf_accum.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

_RANK_VARIABLES = ("LOCAL_RANK", "RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def start_accelerator(
    *,
    trackers: Sequence[str] = (),
    logging_dir: str | os.PathLike[str] | None = None,
    timeout_minutes: float = TIMEOUT_MINUTES,
) -> "Accelerator":
    """accelerate's Accelerator, as `accelerate launch` configured it, checked for what this loop needs.

    Where there is no accelerator it runs on the CPU, with several processes too (gloo). A rank that waits for
    another one longer than `timeout_minutes`, for its gradients, ends with an error.

    Raises:
        UserError: for DeepSpeed, FSDP and other strategies whose forward talks between ranks; for fewer
            processes than the launch asked for; for fp16 on a CPU, which accelerate would silently ignore; for
            bf16 on a GPU that has none.
    """
    _refuse_unsupported_launch()
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
        ProjectConfiguration,
    )

    missing = sorted(set(trackers) - {str(tracker) for tracker in get_available_trackers()})
    if missing:
        raise UserError(
            f"`trackers` {', '.join(missing)}: not known to accelerate, or not installed here; "
            f"there are {', '.join(map(str, get_available_trackers())) or 'none'}"
        )
    _ask_for_expandable_segments()
    on_cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=on_cpu,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        log_with=list(trackers) or None,
        project_config=None if logging_dir is None else ProjectConfiguration(logging_dir=str(logging_dir)),
        # No second copy of the gradients for their exchange.
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes)),
        ],
    )
    asked_for = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes < asked_for:
        raise UserError(
            f"the launch asked for {asked_for} processes, but accelerate runs {accelerator.num_processes}: "
            "start several ranks by `accelerate launch --multi_gpu --num_processes N`, on CPUs too"
        )
    refuse_strategies_that_talk(accelerator)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError(
            "mixed precision fp16 needs a GPU (accelerate would silently train in float32): use bf16 or no"
        )
    if accelerator.mixed_precision == "bf16":
        _refuse_emulated_bf16(accelerator.device)
    _talk_once(accelerator)
    return accelerator


_said: ContextVar[set[str] | None] = ContextVar("said", default=None)
"""What was said for all runs of these processes; None: no other run follows."""


@contextmanager
def keeping_processes() -> Iterator[None]:
    """Inside, `end_accelerator` lets the processes go on talking: torchrun's store lets them meet only once."""
    token = _said.set(set())
    try:
        yield
    finally:
        _said.reset(token)


def is_said(what: str) -> bool:
    """Whether an earlier run inside `keeping_processes` has said this; from now on it has."""
    said = _said.get()
    if said is None:
        return False
    is_so = what in said
    said.add(what)
    return is_so


def end_accelerator(accelerator: "Accelerator") -> None:
    """End a run's trackers and, unless runs follow in these processes, their talk. A collective."""
    if _said.get() is None:
        accelerator.end_training()
        return
    while accelerator.trackers:
        accelerator.trackers.pop().finish()


def _ask_for_expandable_segments() -> None:
    """Have CUDA's allocator let its segments grow, before it starts: texts of all lengths leave less between them.

    Whoever has set the allocator up already, by either variable, keeps it so.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def _talk_once(accelerator: "Accelerator") -> None:
    """A first exchange between the devices: NCCL takes its memory then, which the tuner is not to find free."""
    if accelerator.num_processes > 1 and accelerator.device.type != "cpu":
        torch.distributed.all_reduce(torch.zeros(1, device=accelerator.device))


def _refuse_emulated_bf16(device: torch.device) -> None:
    """Refuse NVIDIA's GPUs before Ampere: torch's `is_bf16_supported` counts an emulation. AMD's all have it."""
    if device.type != "cuda" or torch.version.hip is not None:
        return
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 0):
        raise UserError(
            f"mixed precision bf16 on {torch.cuda.get_device_name(device)}, of compute capability {major}.{minor}: "
            "has to be 8.0 or higher; below, bf16 is emulated and slower than float32, although torch calls it "
            "supported: launch with mixed precision fp16, or no"
        )


def _refuse_unsupported_launch() -> None:
    environment = os.environ
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UserError(
            "accelerate is configured for DeepSpeed, which takes over the accumulation, the division by its "
            "steps and the clipping, so that the window's gradient could not be kept exact: use plain data "
            "parallelism (distributed_type MULTI_GPU), with LoRA or gradient checkpointing to save memory"
        )
    # `accelerate launch --cpu --num_processes 2` (or MULTI_CPU without mpirun) starts one process only. What is
    # left of the wish is a rendezvous address without a rank.
    launched = "ACCELERATE_MIXED_PRECISION" in environment
    if launched and "MASTER_ADDR" in environment and not any(name in environment for name in _RANK_VARIABLES):
        raise UserError(
            "accelerate was asked for several processes but started one, as it does with --cpu, use_cpu: true or "
            "MULTI_CPU without mpirun: use `accelerate launch --multi_gpu --num_processes N` (or "
            "accelerate_configs/cpu_2_processes.yaml), on CPUs too; for a single process, unset MASTER_ADDR"
        )
