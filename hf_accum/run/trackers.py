"""accelerate's experiment trackers: started with a run's configuration, handed its figures, ended with it."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.serialization import as_dict, flattened
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError, first_line

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "hf-accum"


class Trackers:
    """Those that the accelerator was made with, on rank 0; `say` tells of one that fails."""

    def __init__(self, accelerator: "Accelerator", ranks: Ranks, say: Callable[[str], None]) -> None:
        self._accelerator, self._ranks, self._say = accelerator, ranks, say

    def start(self, config: RecipeConfig) -> None:
        """Start each with the configuration, as single values: they take nothing else. A collective.

        Raises:
            UserError: if one does not start (no login, no network, a store that it does not take).
            RankFailed: on the other ranks.
        """
        settings = flattened(as_dict(config))
        plain = {name: v if isinstance(v, int | float | str | bool) else str(v) for name, v in settings.items()}
        how: dict[str, Any] = {}
        if "WANDB_CONSOLE" not in os.environ:
            # Else it also takes what the run says on the console, in which rows of the data may be quoted.
            how["wandb"] = {"settings": {"console": "off"}}

        def start() -> None:
            accelerator, started, wanted = self._accelerator, [], list(self._accelerator.log_with)
            try:
                for one in wanted:
                    accelerator.log_with, accelerator.trackers = [one], []
                    try:
                        accelerator.init_trackers(PROJECT, config=plain, init_kwargs=how)
                    except Exception as error:
                        raise UserError(f"`trackers` {one}: does not start ({first_line(error)})") from error
                    started += accelerator.trackers
            finally:
                accelerator.log_with, accelerator.trackers = wanted, started

        try:
            on_all_ranks(self._ranks, start)
        except Exception:
            self.end()
            raise

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Hand figures to each; one that fails (a full disk, no network) is left out from there on."""
        for tracker in list(self._accelerator.trackers):
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:
                self._accelerator.trackers.remove(tracker)
                self._say(f"tracker {tracker.name} failed and is left out from here on: {first_line(error)}")

    def end(self) -> None:
        """End each; that one cannot be ended is said, and the run's end is not its own."""
        while self._accelerator.trackers:
            tracker = self._accelerator.trackers.pop()
            try:
                tracker.finish()
            except Exception as error:
                self._say(f"tracker {tracker.name} could not be ended: {first_line(error)}")
