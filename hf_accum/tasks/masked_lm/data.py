"""A dataset of plain texts as tokens: long ones in consecutive parts, so that no token is lost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_accum.config.datasets import Datasets
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import BadRow, Row, in_parts
from hf_accum.data.split import SplitData, open_split
from hf_accum.data.survey import Observed
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError, shown
from hf_accum.tasks.special_tokens import Frame
from hf_accum.tasks.tokenization import text_of, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_PARTS = 65_536  # of one text
_TOKENS = "tokens of the part"


def tokens_of(row: Row) -> np.ndarray:
    """The tokens of a part, without special ones."""
    return np.frombuffer(row[_TOKENS], dtype=np.int32)


def open_plain_texts(
    dataset: Datasets,
    ranks: Ranks,
    config: RecipeConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    text_column: str,
    group_column: str | None,
) -> SplitData:
    """Open the dataset and, where its size is needed, read it once. Its rows are parts of at most `config.max_length`
    tokens, the special ones included.

    Without a `group_column` equal texts are on one side of the split.

    Raises:
        UserError: for a dataset, column or row that cannot be used.
    """
    opened = open_split(dataset, [text_column], config, group_column=group_column or text_column)
    most = config.max_length - Frame.of(tokenizer).size
    if most < 1:
        raise UserError(f"`max_length` {config.max_length}: has to leave place for text beside the special tokens")
    group = opened.group_column

    def parts_of(row: Row) -> Sequence[Row]:
        text = text_of(row, text_column)
        ((tokens, _),) = tokenize(tokenizer, [text], max_length=None, special=False)
        if not len(tokens):
            raise BadRow(text_column, f"{shown(text)} has no token: the tokenizer leaves nothing of it")
        of_row = {group: row.get(group)}
        return [of_row | {_TOKENS: tokens[i : i + most].tobytes()} for i in range(0, len(tokens), most)]

    data = opened.with_rows(lambda source: in_parts(source, parts_of, _MOST_PARTS))
    if config.num_epochs is None:
        return data

    def observe(row: Row) -> Observed:
        return Observed((), row[_TOKENS], row[_TOKENS])

    return data.surveyed(observe, ranks, config.on_bad_row)
