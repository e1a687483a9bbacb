"""A run that has its ranks and its folder, and no data or weights yet."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.validation import require
from hf_accum.device.cores import check_cores
from hf_accum.device.free_memory import check_free_memory
from hf_accum.device.live_bytes import sum_bytes, tensors_of
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.launch import is_said, start_accelerator
from hf_accum.distributed.ranks import ranks_of
from hf_accum.distributed.telling import tell
from hf_accum.run.earlier_run import earlier_run
from hf_accum.run.folder import FolderClaim, claim_folder
from hf_accum.run.signals import StopRequest
from hf_accum.seeding import use_deterministic_algorithms
from hf_accum.tuner.workload import Workload


class StartedRun:
    """The ranks of a run, its folder and its `planned` workload, before the data is read.

    `workload` is the recipe's own function: what it trains, by its flags alone, without weights. What is wrong with
    the folder, with the launch, with the model or with the device's memory is said here. `notes` are for the log;
    what was `told` already is not.

    Raises:
        UserError: if the run cannot have that folder, was launched in a way that would train something else, has a
            model that cannot be, or a device whose memory is not counted, or that others fill.
    """

    def __init__(self, config: RecipeConfig, workload: Callable[[Any, str], Workload]) -> None:
        require(
            config.num_seeds == 1, "num_seeds", config.num_seeds, "1 of a single run: a recipe's `main` makes several"
        )
        self.stop = StopRequest(config.max_minutes)
        if config.full_determinism:
            use_deterministic_algorithms()
        self.folder = Path(config.output_dir).expanduser().resolve()
        self.accelerator = start_accelerator(
            trackers=config.trackers, logging_dir=self.folder, timeout_minutes=config.rank_timeout_minutes
        )
        self.precision = self.accelerator.mixed_precision
        self.device = self.accelerator.device
        self.ranks = ranks_of(self.accelerator, config.rank_timeout_minutes)
        self.told = [] if config.preview or self.device.type != "cpu" else _of_cores()
        if self.told and not is_said("cores"):
            tell(self.ranks, "\n".join(self.told))  # on a busy machine the log begins minutes later
        self.earlier = earlier_run(config)
        # A preview writes nothing: another run may be at work in the folder, or fill the card.
        self.claim = FolderClaim() if config.preview else claim_folder(self.folder, self.ranks)
        self._workload = workload
        planned: list[Workload] = []
        on_all_ranks(self.ranks, lambda: planned.append(workload(config, self.precision)))
        self.planned = planned[0]
        self.notes = [] if config.preview else self._check_memory(config)

    def _check_memory(self, config: RecipeConfig) -> list[str]:
        """What is to be said of the ranks' devices before the first step."""
        if self.device.type == "cpu":
            return []
        size, budget = config.micro_batch_size, config.memory_budget

        def mine() -> str | None:
            return check_free_memory(self.device, size, budget, sum_bytes(tensors_of(self.planned.model)))

        return [note for note in on_all_ranks(self.ranks, mine) if note is not None]

    def earlier_values(self, flag: str) -> tuple[str, ...]:
        """What a flag with a list, as of labels, was in the run that this one starts from, if it starts from one."""
        return () if self.earlier is None else self.earlier.values(flag)

    def plan(self, config: RecipeConfig) -> Workload:
        """What would be computed with other flags."""
        return self._workload(config, self.precision)


def _of_cores() -> list[str]:
    """What is to be said of the cores that the threads of all processes here have."""
    note = check_cores(torch.get_num_threads(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return [] if note is None else [note]
