"""The capacity of a run: as its flags say, each rank its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from hf_accum.accumulation.capacity import WorkingCapacity
from hf_accum.accumulation.splitting import PADDED_ON_CARDS, Cutter
from hf_accum.accumulation.time_model import WorkingCosts
from hf_accum.config.recipe import RecipeConfig
from hf_accum.device.memory import device_name, open_memory
from hf_accum.distributed.collectives import on_all_ranks, refuse_layers_that_talk
from hf_accum.distributed.ranks import Ranks
from hf_accum.distributed.telling import told_if_long
from hf_accum.errors import OutOfMemory, UserError
from hf_accum.tuner.cache import cache_path, read, write
from hf_accum.tuner.forwards import tune_forwards
from hf_accum.tuner.search import NothingFits, tune
from hf_accum.tuner.tracing import CannotTrace
from hf_accum.tuner.tuning import Tuning
from hf_accum.tuner.workload import Workload


def find_run_capacity(
    config: RecipeConfig,
    workload: Workload,
    ranks: Ranks,
    device: torch.device,
    *,
    checkpoint: Callable[[], None],
    advise: Callable[[float], Sequence[str]],
    or_one: bool = False,
) -> list[Tuning]:
    """Each rank's capacity, as `micro_batch_size`, `memory_budget` and `gradient_checkpointing` ask for.

    `checkpoint` turns gradient checkpointing on in the workload's model, or raises UserError where it has none;
    `advise` says what would fit into so many bytes, as predicted, where nothing does. With `or_one` a single example
    is taken there, as of a workload that needs more than what it stands for.

    Raises:
        OutOfMemory: if not even one example fits: by how much, and what would fit.
        RankFailed: if that, or anything else, happened on another rank.
        UserError: for a budget that the device has not, a model that cannot be traced, or one whose layers talk to
            the other ranks.
    """
    refuse_layers_that_talk(workload.model, ranks.count)
    share = config.effective_batch_size
    if config.stream_split == "examples":
        share = -(-share // ranks.count)
    share *= workload.num_parts
    probed: list[str] = []

    def watch(num_examples: int, length: int) -> None:
        probed.append(f"probe {len(probed) + 1}: {num_examples}{workload.lengths.of(length)}")

    def mine() -> Tuning:
        size = config.micro_batch_size
        if size != "auto":
            if config.gradient_checkpointing is True:
                checkpoint()
            is_checkpointed = config.gradient_checkpointing is True
            given = Tuning.as_given(size, workload.max_length, is_checkpointed, workload.lengths)
            if config.memory_budget == "auto":
                return given
            memory = open_memory(device, config.memory_budget)  # which limits an accelerator
            return replace(given, limit_bytes=memory.limit_bytes) if device.type == "cpu" else given
        memory = open_memory(device, config.memory_budget)

        def remembered(checkpointing: bool) -> Tuning:
            longest = config.max_probe_seconds
            path = cache_path(workload, memory, device, ranks.count, longest)
            how = {"known": read(path), "max_probe_seconds": longest, "watch": watch}
            tuning = (tune if workload.trains else tune_forwards)(workload, memory, device, most=share, **how)
            write(path, tuning)
            return replace(tuning, checkpointing=checkpointing, cache=path)

        try:
            if config.gradient_checkpointing is True:
                checkpoint()
                return remembered(True)
            try:
                return remembered(False)
            except NothingFits as error:
                is_asked = config.gradient_checkpointing is not False and not config.activation_offload
                if or_one or not workload.trains or not is_asked:
                    raise
                try:
                    checkpoint()
                except ValueError:  # this model cannot
                    raise error from None
            return remembered(True)
        except NothingFits as error:
            if or_one:
                return Tuning.as_given(1, workload.max_length, lengths=workload.lengths)
            if not workload.trains:
                flag = workload.lengths.flag
                raise OutOfMemory(
                    f"{error}; a smaller `{flag}` needs less, and `micro_batch_size` 1 tries it all the same"
                ) from error
            ways = "".join(f"\n  {way}" for way in advise(error.budget_bytes))
            raise OutOfMemory(f"{error}{'; what would fit:' if ways else ''}{ways}") from error
        except CannotTrace as error:
            raise UserError(f"`micro_batch_size` auto: {error}; give a number") from error

    trying = (
        f"trying which micro-batches fit, of at most {share}{workload.lengths.of(workload.max_length)}, before "
        f"the first {'step' if workload.trains else 'row'} (a number as `micro_batch_size` spares it)"
    )
    with told_if_long(ranks, trying, lambda: probed[-1] if probed else "the prediction comes first"):
        return on_all_ranks(ranks, mine)


def cutter_of(tuning: Tuning, device: torch.device, *, learns: bool = True) -> Cutter:
    """How a rank cuts its windows, to begin with; if it learns nothing, how it always does, in every run."""
    how = {"leaves_out_first": device.type != "cpu"}
    costs = WorkingCosts(tuning.costs, is_settled=tuning.settled, **how) if learns else WorkingCosts(is_settled=True)
    multiple_of = 1 if device.type == "cpu" else PADDED_ON_CARDS
    name = device_name(device)
    return Cutter(WorkingCapacity(tuning.capacity), costs, multiple_of, tuning.max_length, name, tuning.lengths)


def keep_costs(tuning: Tuning, cutter: Cutter, ranks: Ranks) -> list[Tuning]:
    """Each rank's tuning with the costs that its run has learned, which are kept for later runs. A collective."""
    costs = cutter.costs
    learned = tuning if costs is None else replace(tuning, costs=costs.costs, settled=costs.is_settled)
    if learned.cache is not None and learned != tuning:
        write(learned.cache, learned)
    return ranks.gather_objects(learned)


def tuning_json(tunings: Sequence[Tuning]) -> dict[str, Any]:
    """What tuning.json holds: the first rank's tuning and, if there are several, under `ranks` that of each."""
    several = {"ranks": [tuning.as_json() for tuning in tunings]} if len(tunings) > 1 else {}
    return tunings[0].as_json() | several
