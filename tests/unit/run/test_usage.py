"""What a run says of the use of its result: what its task knows, and the columns of its flags."""

from typing import Any

from hf_accum.models.spec import ModelSpec
from hf_accum.models.usage import Usage
from hf_accum.run.usage import usage_of
from recipes.clinical_classification import ClinicalClassificationConfig


class OfATask:
    def __init__(self, **columns: str) -> None:
        self.columns = columns

    def usage(self) -> Usage:
        return Usage(task="text-classification", auto_class="AutoModel", max_length=9, columns=self.columns)


def test_the_columns_are_those_of_the_flags_where_the_task_does_not_say_what_it_reads() -> None:
    config = ClinicalClassificationConfig(text_column="note", label_column="urgency", group_column="patient")
    task: Any = OfATask()
    usage = usage_of(config, task, ModelSpec(None, "x", None, origin="made so"))
    assert usage is not None
    assert usage.columns == {"text": "note", "label": "urgency"}
    assert (usage.max_length, usage.base) == (9, {"origin": "made so"})
    task = OfATask(text="Age {age}: {note}")
    usage = usage_of(config, task, ModelSpec(None, "x", None))
    assert usage is not None
    assert usage.columns == {"text": "Age {age}: {note}"}


def test_a_task_of_ones_own_need_not_say() -> None:
    task: Any = object()
    assert usage_of(ClinicalClassificationConfig(), task, ModelSpec(None, "x", None)) is None
