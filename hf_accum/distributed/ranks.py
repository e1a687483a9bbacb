"""The processes of a run: starting accelerate on them, and the small talk between them on the CPU."""

import os
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from hf_accum.errors import RankFailed, first_line

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

TIMEOUT_MINUTES = 10.0
"""For which a rank waits for another one: torch's own for GPUs."""

_LOST = (
    *("closed by peer", "reset by peer", "broken pipe", "connection refused", "timed out", "timeout"),
    *("remote process exited", "communicator was aborted"),  # NCCL's
)
_RANK_VARIABLES = ("LOCAL_RANK", "RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


class Ranks(Protocol):
    """What the stream, the evaluation and the log need of the processes."""

    @property
    def index(self) -> int:
        """This process's rank."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """Every rank's signed 64-bit numbers, in order of rank. All ranks pass equally many."""
        ...

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in order of rank."""
        ...

    def exchange(self, outgoing: Mapping[int, T], sources: Sequence[int]) -> dict[int, T]:
        """Send a value to some ranks, and return those from the `sources`, which are the ranks that send one here."""
        ...

    def apart(self) -> "Ranks":
        """The same ranks for talk of another thread, so that neither waits for the other's. A collective."""
        ...


@contextmanager
def talking() -> Iterator[None]:
    """Around what talks to the other ranks: one that has gone, or does not answer in time, is told in plain words.

    Raises:
        RankFailed: instead of the errors that gloo and NCCL have for it.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error).lower() for text in _LOST):
            raise
        raise RankFailed(
            "another rank has ended, or has not answered for longer than --rank_timeout_minutes: see its own error, "
            f"or what the launcher says of it ({first_line(error)})"
        ) from error


class OneRank:
    """A run of a single process."""

    index = 0
    count = 1

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """This rank's numbers."""
        return [list(numbers)]

    def gather_objects(self, value: T) -> list[T]:
        """This rank's value."""
        return [value]

    def exchange(self, outgoing: Mapping[int, T], sources: Sequence[int]) -> dict[int, T]:
        """There is nobody to exchange with."""
        return {}

    def apart(self) -> "OneRank":
        """This rank."""
        return self


class ProcessGroupRanks:
    """Ranks of `torch.distributed`, over a gloo group of their own.

    On the CPU, so that agreeing on a window never waits for a device, and apart from the group of the
    gradients, so that neither waits for the other's order.
    """

    def __init__(self, timeout: timedelta) -> None:
        self.index = dist.get_rank()
        self.count = dist.get_world_size()
        self._timeout = timeout
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout)

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """One all-gather of int64."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        everyone = [torch.empty_like(mine) for _ in range(self.count)]
        with talking():
            dist.all_gather(everyone, mine, group=self._group)
        return [tensor.tolist() for tensor in everyone]

    def gather_objects(self, value: T) -> list[T]:
        """One all-gather of pickled values of this run's own processes."""
        values: list[Any] = [None] * self.count
        with talking():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def exchange(self, outgoing: Mapping[int, T], sources: Sequence[int]) -> dict[int, T]:
        """Point to point: pickled values of this run's own processes, each after its number of bytes."""
        with talking():
            return self._exchange(outgoing, sources)

    def _exchange(self, outgoing: Mapping[int, T], sources: Sequence[int]) -> dict[int, T]:
        sent = []
        for rank, value in outgoing.items():
            payload = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
            parts = (torch.tensor([len(payload)]), payload)
            sent += [(part, dist.isend(part, rank, group=self._group)) for part in parts]
        incoming: dict[int, T] = {}
        for rank in sources:
            size = torch.empty(1, dtype=torch.int64)
            dist.recv(size, rank, group=self._group)
            payload = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(payload, rank, group=self._group)
            incoming[rank] = pickle.loads(payload.numpy().tobytes())
        for _, work in sent:
            if work is not None:
                work.wait()
        return incoming

    def apart(self) -> "ProcessGroupRanks":
        """Another group."""
        return ProcessGroupRanks(self._timeout)


def ranks_of(accelerator: "Accelerator", timeout_minutes: float = TIMEOUT_MINUTES) -> Ranks:
    """The ranks of a started run. A collective: call it once, on every rank."""
    several = accelerator.num_processes > 1
    return ProcessGroupRanks(timedelta(minutes=timeout_minutes)) if several else OneRank()


def broadcast_weights(model: nn.Module, accelerator: "Accelerator") -> None:
    """Give every rank the parameters and buffers of rank 0. A collective."""
    from accelerate.utils import broadcast

    if accelerator.num_processes == 1:
        return
    with torch.no_grad(), talking():
        for tensor in model.state_dict().values():
            tensor.copy_(broadcast(tensor, from_process=0))


def refuse_layers_that_talk(model: nn.Module, num_ranks: int) -> None:
    """Refuse layers that talk to the other ranks in every forward: the ranks' numbers of forwards differ.

    Raises:
        ValueError: if there are several ranks and such a layer.
    """
    if num_ranks > 1:
        for name, module in model.named_modules():
            if isinstance(module, nn.SyncBatchNorm):
                raise ValueError(
                    f"layer {name} is a SyncBatchNorm, which waits for the other ranks in every forward, while here "
                    "ranks may run different numbers of micro-batches: use BatchNorm, frozen (eval mode) or of each "
                    "rank's own statistics, or GroupNorm"
                )


def float_bits(number: float) -> int:
    """A float64 as a signed 64-bit number, for `Ranks.gather`."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


def bits_float(bits: int) -> float:
    """The inverse of `float_bits`."""
    return struct.unpack("<d", struct.pack("<q", bits))[0]


def together(ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """Run `work` on every rank and return all results; an error on one rank is raised on all.

    Without it, ranks that succeed would wait in the next collective for one that has left.

    Raises:
        RankFailed: on the ranks that did not fail themselves.
        Exception: whatever `work` raised on this one.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as failure:
        error = failure
    outcomes = ranks.gather_objects((result, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for index, (_, message) in enumerate(outcomes):
        if message is not None:
            raise RankFailed(f"rank {index} failed: {message}")
    return [value for value, _ in outcomes]  # type: ignore[misc]


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
        ValueError: for DeepSpeed, FSDP and other strategies whose forward talks between ranks; for fewer
            processes than the launch asked for; for fp16 on a CPU, which accelerate would silently ignore.
    """
    _refuse_unsupported_launch()
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        DistributedType,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
        ProjectConfiguration,
    )

    missing = sorted(set(trackers) - {str(tracker) for tracker in get_available_trackers()})
    if missing:
        raise ValueError(
            f"--trackers {', '.join(missing)}: not known to accelerate, or not installed here; "
            f"there are {', '.join(map(str, get_available_trackers())) or 'none'}"
        )
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
        raise ValueError(
            f"the launch asked for {asked_for} processes, but accelerate runs {accelerator.num_processes}: "
            "start several ranks by `accelerate launch --multi_gpu --num_processes N`, on CPUs too"
        )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU) and not str(
        accelerator.distributed_type.value
    ).startswith("MULTI_"):
        raise ValueError(
            f"accelerate is configured for {accelerator.distributed_type.value}, whose ranks talk in every "
            "forward, while here ranks may run different numbers of micro-batches: use plain data parallelism "
            "(distributed_type MULTI_GPU)"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "mixed precision fp16 needs a GPU (accelerate would silently train in float32): use bf16 or no"
        )
    return accelerator


def _refuse_unsupported_launch() -> None:
    environment = os.environ
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError(
            "accelerate is configured for DeepSpeed, which takes over the accumulation, the division by its "
            "steps and the clipping, so that the window's gradient could not be kept exact: use plain data "
            "parallelism (distributed_type MULTI_GPU), with LoRA or gradient checkpointing to save memory"
        )
    # `accelerate launch --cpu --num_processes 2` (or MULTI_CPU without mpirun) starts one process only. What is
    # left of the wish is a rendezvous address without a rank.
    launched = "ACCELERATE_MIXED_PRECISION" in environment
    if launched and "MASTER_ADDR" in environment and not any(name in environment for name in _RANK_VARIABLES):
        raise ValueError(
            "accelerate was asked for several processes but started one, as it does with --cpu, use_cpu: true or "
            "MULTI_CPU without mpirun: use `accelerate launch --multi_gpu --num_processes N` (or "
            "accelerate_configs/cpu_2_processes.yaml), on CPUs too; for a single process, unset MASTER_ADDR"
        )
