"""Capacities that are found on the CPU."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from workload_cases import CPU, make_workload, peak_of_training

from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.ranks import OneRank, Ranks
from hf_accum.models.lora import checkpoint_activations
from hf_accum.tuner.run_capacity import find_run_capacity
from hf_accum.tuner.search import Tuning
from hf_accum.tuner.workload import Workload


def find(
    work: Workload,
    budget: int | str,
    ranks: Ranks | None = None,
    *,
    advise: Callable[[float], Sequence[str]] = lambda _: (),
    **flags: Any,
) -> list[Tuning]:
    config = RecipeConfig(memory_budget=str(budget), effective_batch_size=16, **flags)

    def checkpoint() -> None:
        checkpoint_activations(work.model)  # type: ignore[arg-type]

    return find_run_capacity(config, work, ranks or OneRank(), CPU, checkpoint=checkpoint, advise=advise)


def llama(lora: bool = False) -> Workload:
    return make_workload("llama", lora=lora, checkpointing=False)


@functools.cache
def peak_of_two() -> int:
    return peak_of_training(llama(), 2, 512)
