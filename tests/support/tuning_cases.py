"""Capacities that are found on the CPU."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from torch import nn
from workload_cases import CPU, make_workload, peak_of_training

from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.ranks import OneRank, Ranks
from hf_accum.models.lora import checkpoint_activations
from hf_accum.tuner.prediction import Prediction, predict
from hf_accum.tuner.run_capacity import find_run_capacity
from hf_accum.tuner.tuning import Tuning
from hf_accum.tuner.workload import Workload


def find(
    work: Workload,
    budget: int | str,
    ranks: Ranks | None = None,
    *,
    advise: Callable[[float], Sequence[str]] = lambda _: (),
    or_one: bool = False,
    **flags: Any,
) -> list[Tuning]:
    config = RecipeConfig(memory_budget=str(budget), effective_batch_size=16, **flags)

    def checkpoint() -> None:
        checkpoint_activations(work.model)  # type: ignore[arg-type]

    how: dict[str, Any] = {"checkpoint": checkpoint, "advise": advise, "or_one": or_one}
    return find_run_capacity(config, work, ranks or OneRank(), CPU, **how)


_MADE: "WeakKeyDictionary[nn.Module, tuple[object, bool]]" = WeakKeyDictionary()
"""The loss of each workload of `llama`, and whether it has adapters, by its model."""


def llama(lora: bool = False) -> Workload:
    work = make_workload("llama", lora=lora, checkpointing=False)
    _MADE[work.model] = work.summed_loss, lora
    return work


def is_checkpointing(work: Workload) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in work.model.modules())


_ONE_AT_A_TIME = threading.Lock()


def trace_llama_once(patch: pytest.MonkeyPatch) -> None:
    """The workloads of `llama`, while their loss is its own, are traced once in a process: all are alike."""

    def predicted(work: Workload, **how: Any) -> Prediction:
        loss, lora = _MADE.get(work.model, (None, False))
        if work.summed_loss is not loss:
            return predict(work, **how)
        with _ONE_AT_A_TIME:
            return _predicted(lora, is_checkpointing(work))

    patch.setattr("hf_accum.tuner.search.predict", predicted)


@functools.cache
def _predicted(lora: bool, checkpointing: bool) -> Prediction:
    return predict(make_workload("llama", lora=lora, checkpointing=checkpointing))


@functools.cache
def peak_of_two(lora: bool = False) -> int:
    return peak_of_training(llama(lora), 2, 512)
