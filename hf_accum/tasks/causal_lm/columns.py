"""How the rows of a dataset are read where no flag names its columns: by the names that such data sets have."""

from collections.abc import Iterable

from hf_accum.config.datasets import Datasets, parts_of
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import BadRow, open_source

_MESSAGES = ("messages", "conversations", "conversation")
_PAIRS = (("instruction", "output"), ("prompt", "response"), ("prompt", "completion"))
_INPUT, _TOOLS = "input", "tools"


def find_columns(dataset: Datasets, config: RecipeConfig) -> dict[str, str]:
    """The flags of the columns, by the first row's: of a text there are none, since `text` needs no flag. Of several
    datasets the first one tells.

    Raises:
        UserError: for a dataset that cannot be opened.
    """
    return columns_among(_names(dataset, config))


def find_tools(dataset: Datasets, config: RecipeConfig) -> str | None:
    """The column with the definitions of tools, if the first row has one; errors as `find_columns` has."""
    return _TOOLS if _TOOLS in _names(dataset, config) else None


def _names(dataset: Datasets, config: RecipeConfig) -> list[str]:
    source = open_source(parts_of(dataset)[0].location, config.train_split, revision=config.dataset_revision)
    rows = (row for shard in range(source.num_shards) for _, row in source.read(shard, 0))
    return next((list(map(str, row)) for row in rows if not isinstance(row, BadRow)), [])


def columns_among(names: Iterable[str]) -> dict[str, str]:
    """The same, of a row with these columns: a text, messages (and tools), or alpaca's three."""
    there = set(names)
    if "text" in there:
        return {}
    for column in _MESSAGES:
        if column in there:
            return {"messages_column": column} | ({"tools_column": _TOOLS} if _TOOLS in there else {})
    for prompt, response in _PAIRS:
        if {prompt, response} <= there:
            of_input = {"input_column": _INPUT} if prompt == "instruction" and _INPUT in there else {}
            return {"prompt_column": prompt, "response_column": response, **of_input}
    return {}
