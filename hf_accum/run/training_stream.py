"""The windows that a run trains on, as its flags say."""

from collections.abc import Callable
from typing import Any

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import Row
from hf_accum.data.split import SplitData
from hf_accum.data.stream import WindowStream
from hf_accum.run.start import StartedRun
from hf_accum.tasks.task import Task


def training_stream(
    run: StartedRun,
    config: RecipeConfig,
    data: SplitData,
    task: Task[Any],
    draw: Callable[[Example, int | None], Example] | None,
    cutter: Cutter,
) -> WindowStream[Any]:
    """Of the rows to train on; it ends with the window for which any rank is asked to stop. A collective."""

    def prepare(row: Row) -> Any:
        return task.prepare(row) if data.is_to_train_on(row) else None

    return WindowStream(
        data.source,
        prepare,
        task.encode,
        ranks=run.ranks,
        effective_batch_size=config.effective_batch_size,
        seed=config.seed,
        num_epochs=config.num_epochs,
        split=config.stream_split,
        shuffle_block_size=config.shuffle_block_size,
        on_bad_row=config.on_bad_row,
        max_skipped_share=config.max_skipped_share if data.num_train is None else None,  # else it is known
        draw=draw,
        balance=cutter.speed_at_step if config.balance_ranks else None,
        stopping=run.stop.is_asked,
        mixture=data.mixture,
    )
