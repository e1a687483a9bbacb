"""What merging a run needs of its recipe: the base, and rows to compare the adapter and the merged model on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from hf_accum.accumulation.example import Example
from hf_accum.cli.evaluation import as_trained, held_out_whole
from hf_accum.cli.handed_over import Handed, handed_over
from hf_accum.cli.made_up_rows import with_made_up_rows
from hf_accum.cli.prediction import without_training
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.held_out import all_held_out
from hf_accum.distributed.launch import end_accelerator
from hf_accum.errors import UserError
from hf_accum.run.evaluation import Evaluation

_NUM_ROWS = 8


@dataclass(frozen=True)
class ToMerge:
    """What a recipe hands over, some examples, and where they are from."""

    handed: Handed
    examples: list[Example]
    rows: str


@contextmanager
def open_merge(module: ModuleType, config: RecipeConfig, dataset: str | None) -> Iterator[ToMerge]:
    """The base of a run with these flags, and rows: of a dataset, or held out by the run, or else made up.

    Raises:
        UserError: if the dataset that is named cannot be used; if there are several ranks.
    """
    config = replace(config, quantization="none", max_eval_examples=None)
    try:
        with _opened(module, as_trained(config, dataset, "train"), whole=dataset is not None) as (handed, examples):
            rows = "rows that the run held out" if dataset is None else f"rows of {dataset}"
            to_merge = ToMerge(handed, examples, rows)
            yield to_merge
            return
    except UserError as error:
        if dataset is not None or "to_merge" in locals():
            raise
        why = str(error)
    with (
        with_made_up_rows(without_training(config)) as made_up,
        _opened(module, made_up, whole=True) as (handed, examples),
    ):
        yield ToMerge(
            handed, examples, f"rows that are made up, as those that the run held out are not there ({why})"
        )


@contextmanager
def _opened(module: ModuleType, config: RecipeConfig, *, whole: bool) -> Iterator[tuple[Handed, list[Example]]]:
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory())) / "run"
        with all_held_out() if whole else nullcontext():
            handed = handed_over(module, replace(config, output_dir=str(place)))
        stack.callback(end_accelerator, handed.run.accelerator)
        stack.callback(handed.run.claim.release)
        if handed.run.ranks.count > 1:
            raise UserError("an adapter is merged in one process: start it without `accelerate launch`")
        data = held_out_whole(handed.data) if whole else handed.data
        evaluation = Evaluation(handed.run, handed.config, data, handed.task, handed.draw)
        yield handed, evaluation.first_examples(_NUM_ROWS)
