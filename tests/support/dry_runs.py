"""Windows whose micro-batches are looked at and not computed."""

from collections.abc import Iterator

from hf_accum.accumulation.capacity import WorkingCapacity
from hf_accum.accumulation.execution import MicroBatch, WindowExecution
from hf_accum.accumulation.splitting import Cutter


def dry_run(window: WindowExecution, capacity: Cutter | WorkingCapacity | int) -> Iterator[MicroBatch]:
    """Its micro-batches, as if each went through."""
    for micro_batch in window.micro_batches(capacity):
        yield micro_batch
        micro_batch.is_through = True
