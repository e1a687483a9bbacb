"""The question at each run's start, before anything is written: does the gradient depend on the cut?"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import Ranks
from hf_accum.distributed.telling import told_if_long
from hf_accum.errors import UserError
from hf_accum.gradient_check.cut_dependence import find_cut_dependence
from hf_accum.gradient_check.forwards import CannotCheck, Computed, Forwards
from hf_accum.models.forward_failure import naming_forward_failure
from hf_accum.tasks.task import Task
from hf_accum.tuner.workload import Workload

_NUM_EXAMPLES = 3
_LOSS_SCALE = 2.0**12  # of float16


@runtime_checkable
class _Encodes(Protocol):
    """A task whose loss is no sum over texts, and whose vectors are of a text each."""

    def vectors(self, model: nn.Module, inputs: Any) -> Tensor: ...


def refuse_cut_dependence(
    config: RecipeConfig,
    workload: Workload,
    task: Task[Any],
    stream: WindowStream[Any],
    draw: Callable[[Example, int | None], Example] | None,
    cutter: Cutter,
    ranks: Ranks,
    device: torch.device,
) -> list[str]:
    """Refuse a model whose gradient depends on how windows are cut, as `find_cut_dependence` finds.

    Returns what is to be said of one that `allow_cut_dependence` allows, or that could not be asked. A collective.

    Raises:
        UserError: saying what was seen, which layer or field of the config does it, and the way out.
        RankFailed: if another rank found it.
    """
    computed = Computed(
        workload.model,
        _along_a_direction if isinstance(task, _Encodes) else task.summed_loss,
        lambda examples, length: _batch(task, examples, length, device),
        device,
        cutter.capacity.num_examples,
        cutter.padded,
        task.max_length,
        task.lengths.vary,
        draw=lambda example: example if draw is None else draw(example, 0),
        autocast=None if workload.precision == "no" else lambda: workload.autocast(device),
        loss_scale=_LOSS_SCALE if workload.precision == "fp16" else 1.0,
    )

    def ask() -> str | None:
        examples = inputs_of(stream.first_examples(_NUM_EXAMPLES))
        try:
            fault = find_cut_dependence(
                computed,
                examples,
                without_dropout=config.dropout == 0,  # an adapter has the same
                sees_batches=getattr(config, "batch_norm", None) == "micro_batch",
            )
        except CannotCheck as error:
            again = workload.again(device)
            with naming_forward_failure(workload.model, config, workload.precision, again), torch.no_grad():
                Forwards(computed, examples).loss(computed.draw(examples[0]))  # as it is, which was not asked
            return str(error)
        if fault is not None and not config.allow_cut_dependence:
            ways = f"{fault.way_out}; " if fault.way_out else ""
            raise UserError(f"{fault}; {ways}`allow_cut_dependence true` trains it as it is")
        return None if fault is None else f"{fault}: allowed"

    with told_if_long(ranks, "checking that the gradient does not depend on how windows are cut"):
        notes = on_all_ranks(ranks, ask)
    return list(dict.fromkeys(note for note in notes if note is not None))


def _batch(task: Task[Any], examples: Any, length: int, device: torch.device) -> Any:
    batch = to_device(task.collate(examples, length), device)
    return (task, batch) if isinstance(task, _Encodes) else batch


def _along_a_direction(model: nn.Module, batch: tuple[_Encodes, Any]) -> Tensor:
    """The vectors of texts, as they go into any loss: the sum of their products with one that has no symmetry."""
    task, inputs = batch
    vectors = task.vectors(model, inputs).float()
    return (vectors * torch.arange(vectors.shape[1], device=vectors.device).cos()).sum()
