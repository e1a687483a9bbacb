"""A run that has its ranks and its folder, and no data or weights yet."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.launch import start_accelerator
from hf_accum.distributed.ranks import ranks_of
from hf_accum.run.folder import claim_folder
from hf_accum.run.signals import StopRequest
from hf_accum.seeding import use_deterministic_algorithms
from hf_accum.tuner.workload import Workload


class StartedRun:
    """The ranks of a run, its folder and its `planned` workload, before the data is read.

    `workload` is the recipe's own function: what it trains, by its flags alone, without weights. What is wrong with
    the folder, with the launch or with the model is said here.

    Raises:
        UserError: if the run cannot have that folder, was launched in a way that would train something else, or has a
            model that cannot be.
    """

    def __init__(self, config: RecipeConfig, workload: Callable[[Any, str], Workload]) -> None:
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
        self.claim = claim_folder(self.folder, self.ranks)
        self._workload = workload
        self._known: dict[str, Any] = {}
        planned: list[Workload] = []
        on_all_ranks(self.ranks, lambda: planned.append(workload(config, self.precision)))
        self.planned = planned[0]

    def known(self, **flags: Any) -> None:
        """Take note of flags that the data has told, for what is planned from here on."""
        self._known |= flags

    def plan(self, config: RecipeConfig) -> Workload:
        """What would be computed with other flags."""
        return self._workload(replace(config, **self._known), self.precision)
