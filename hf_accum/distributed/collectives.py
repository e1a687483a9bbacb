"""What all ranks do together."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_accum.distributed.ranks import Ranks, T, talking
from hf_accum.errors import RankFailed, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


def broadcast_weights(model: nn.Module, accelerator: "Accelerator") -> None:
    """Give every rank the parameters that are trained, and the buffers, of rank 0. A collective.

    Frozen parameters are those of the files that each rank loaded. Of 4-bit layers `state_dict()` has tensors on the
    CPU besides (bitsandbytes' `quant_state`), which NCCL does not take.
    """
    from accelerate.utils import broadcast

    if accelerator.num_processes == 1:
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad(), talking():
        for tensor in (*trained, *model.buffers()):
            tensor.copy_(broadcast(tensor, from_process=0))


def refuse_strategies_that_talk(accelerator: "Accelerator") -> None:
    """Refuse DeepSpeed, FSDP and others whose ranks talk in every forward: their numbers of forwards differ.

    Raises:
        UserError: for them.
    """
    strategy = accelerator.distributed_type.value
    if strategy != "NO" and not strategy.startswith("MULTI_"):
        raise UserError(
            f"accelerate is configured for {strategy}, whose ranks talk in every forward, while here ranks may run "
            "different numbers of micro-batches: use plain data parallelism (distributed_type MULTI_GPU)"
        )


def refuse_layers_that_talk(model: nn.Module, num_ranks: int) -> None:
    """Refuse layers that talk to the other ranks in every forward: the ranks' numbers of forwards differ.

    Raises:
        UserError: if there are several ranks and such a layer.
    """
    if num_ranks > 1:
        for name, module in model.named_modules():
            if isinstance(module, nn.SyncBatchNorm):
                raise UserError(
                    f"layer {name} is a SyncBatchNorm, which waits for the other ranks in every forward, while here "
                    "ranks may run different numbers of micro-batches: use BatchNorm, frozen (eval mode) or of each "
                    "rank's own statistics, or GroupNorm"
                )


def on_all_ranks(ranks: Ranks, work: Callable[[], T]) -> list[T]:
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


def on_rank_0(ranks: Ranks, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 alone, and return its result on every rank; an error is raised on all.

    Raises:
        RankFailed, Exception: as `on_all_ranks` does.
    """
    return on_all_ranks(ranks, lambda: work() if ranks.index == 0 else None)[0]  # type: ignore[return-value]
