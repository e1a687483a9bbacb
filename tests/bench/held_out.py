"""What benchmarks of quality share: the two sides of a recipe's data, and a model's figures on the held-out one."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import Row
from hf_accum.data.split import SplitData
from hf_accum.distributed.ranks import OneRank
from hf_accum.recipe import WindowStream
from hf_accum.run.training import Task


def rows_of(data: SplitData, held_out: bool) -> Iterator[tuple[str, Row]]:
    """The rows of one side of the split, with their ids."""
    for shard in range(data.source.num_shards):
        for number, row in data.source.read(shard, 0):
            assert isinstance(row, Mapping)
            if data.is_held_out(row, False) == held_out:
                yield f"{shard}:{number}", row


def evaluate(model: nn.Module, task: Task[Any], data: SplitData, at_once: int, draw: Any = None) -> dict[str, Any]:
    """The figures of a model on the held-out data, as a recipe evaluates it, so many examples in a forward."""
    stream = WindowStream(
        data.eval_source,
        lambda row: task.prepare(row) if data.is_held_out(row, True) else None,
        task.encode,
        ranks=OneRank(),
        effective_batch_size=256,
        seed=0,
        shuffle_block_size=1,
        skip_weightless=False,
        draw=draw,
    )
    return task.evaluate(model, stream, ranks=OneRank(), cutter=Cutter(WorkingCapacity(Capacity(at_once))))
