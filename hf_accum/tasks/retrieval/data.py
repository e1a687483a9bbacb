"""A dataset of pairs of texts: opened, and read once where its size is needed."""

from hf_accum.config.datasets import Datasets
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import Row
from hf_accum.data.split import SplitData, open_split
from hf_accum.data.survey import Observed
from hf_accum.distributed.ranks import Ranks
from hf_accum.tasks.tokenization import text_of


def open_text_pairs(
    dataset: Datasets, ranks: Ranks, config: RecipeConfig, columns: tuple[str, str], *, group_column: str
) -> SplitData:
    """Open the dataset, whose rows have a text in each of two columns.

    Raises:
        UserError: for a dataset, column or row that cannot be used.
    """
    data = open_split(dataset, columns, config, group_column=group_column)
    if config.num_epochs is None:
        return data

    def observe(row: Row) -> Observed:
        texts = tuple(text_of(row, column) for column in columns)
        return Observed((), texts, "\0".join(texts))

    return data.surveyed(observe, ranks, config.on_bad_row)
