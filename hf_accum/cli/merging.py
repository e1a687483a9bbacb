"""What merging a run needs of its recipe: the base, and rows to compare the adapter and the merged model on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

from hf_accum.accumulation.example import Example
from hf_accum.cli.evaluation import as_trained
from hf_accum.cli.handed_over import Handed, opened
from hf_accum.cli.made_up_rows import with_made_up_rows
from hf_accum.cli.prediction import for_made_up_rows
from hf_accum.config.recipe import RecipeConfig
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
        UserError: if the dataset that is named cannot be used.
    """
    config = replace(config, quantization="none", max_eval_examples=None)
    with ExitStack() as stack:
        rows = "rows that the run held out" if dataset is None else f"rows of {dataset}"
        try:
            on_rows = as_trained(config, dataset, "train")
            handed, examples = stack.enter_context(_opened(module, on_rows, all_rows=dataset is not None))
        except UserError as error:
            if dataset is not None:
                raise
            made_up = stack.enter_context(with_made_up_rows(for_made_up_rows(config)))
            handed, examples = stack.enter_context(_opened(module, made_up, all_rows=True))
            rows = f"rows that are made up, as those that the run held out are not there ({error})"
        yield ToMerge(handed, examples, rows)


@contextmanager
def _opened(module: ModuleType, config: RecipeConfig, *, all_rows: bool) -> Iterator[tuple[Handed, list[Example]]]:
    with opened(module, config, all_rows=all_rows) as handed:
        evaluation = Evaluation(handed.run, handed.config, handed.data, handed.task, handed.draw)
        yield handed, evaluation.first_examples(_NUM_ROWS)
