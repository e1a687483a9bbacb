"""How a run's result is used: what its task knows of that, and what its flags do."""

from dataclasses import replace
from typing import Any

from hf_accum.config.recipe import RecipeConfig
from hf_accum.models.spec import ModelSpec
from hf_accum.models.usage import Usage
from hf_accum.tasks.task import Explains, Task

_OF_COLUMN = "_column"


def usage_of(config: RecipeConfig, task: Task[Any], spec: ModelSpec) -> Usage | None:
    """With the columns that were read, by the flags where the task does not say.

    None for a task that does not explain itself.
    """
    if not isinstance(task, Explains):
        return None
    columns = {
        name.removesuffix(_OF_COLUMN): value
        for name, value in vars(config).items()
        if name.endswith(_OF_COLUMN) and value and name != "group_column"
    }
    usage = task.usage()
    base = {"origin": spec.origin} if spec.origin else None
    return replace(usage, columns=usage.columns or columns, base=base, replaces_head=spec.replace_head)
