"""How a run's result is used: what its task knows of that, and what its flags do."""

from dataclasses import replace
from typing import Any

from hf_accum.config.recipe import RecipeConfig
from hf_accum.models.spec import ModelSpec
from hf_accum.models.usage import Usage
from hf_accum.tasks.task import Explains, Task

_OF_COLUMN = "_column"


def usage_of(config: RecipeConfig, task: Task[Any], spec: ModelSpec) -> Usage | None:
    """With the columns that were read; None for a task that does not explain itself."""
    if not isinstance(task, Explains):
        return None
    columns = {
        name.removesuffix(_OF_COLUMN): value
        for name, value in vars(config).items()
        if name.endswith(_OF_COLUMN) and value and name != "group_column"
    }
    if template := getattr(config, "text_template", None):
        columns["text"] = template
    base = {"origin": spec.origin} if spec.origin else None
    return replace(task.usage(), columns=columns, base=base)
