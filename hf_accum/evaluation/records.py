"""Files of a run that hold each held-out example: `predictions.jsonl`, and `errors.jsonl`, the worst first."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_accum.evaluation.decisions import Decisions
from hf_accum.evaluation.judge import Judged
from hf_accum.files import why_not_written, write_json_lines

PREDICTIONS, ERRORS = "predictions.jsonl", "errors.jsonl"
NOT_WRITTEN = f"{PREDICTIONS} and {ERRORS} could not be written"
"""What a note begins with where that is so: it ends no training."""
_DIGITS = 6
Record = dict[str, Any]


def write_records(
    folder: Path, judged: Judged, place_of: Callable[[str], str], predicted: Callable[[int], Record]
) -> list[str]:
    """Write both files, whole or not at all; returns what is to be said of them.

    Args:
        place_of: what an example is called, of its id: the file and the row.
        predicted: the label, the prediction and what belongs to it, of the example with this number.
    """
    assert judged.losses is not None
    losses = np.round(judged.losses, _DIGITS).tolist()

    def record(index: int, shown: Mapping[str, Any]) -> Record:
        return {"id": place_of(judged.ids[index]), **shown, **predicted(index), "loss": losses[index]}

    try:
        write_json_lines(folder / PREDICTIONS, (record(index, {}) for index in range(len(judged.ids))))
        write_json_lines(folder / ERRORS, (record(one.index, one.shown) for one in judged.worst))
    except OSError as error:
        return [f"{NOT_WRITTEN} ({why_not_written(folder, error)})"]
    which = f"has the {len(judged.worst):,} of {len(judged.ids):,} with the greatest loss"
    if len(judged.worst) == len(judged.ids):
        which = "has them too, the greatest loss first"
    return [f"every evaluated example is in {PREDICTIONS}; {ERRORS} {which}"]


def place_in(names: Sequence[str], parts_per_row: int = 1) -> Callable[[str], str]:
    """What examples of a source with these files are called: `notes.jsonl:12`, as messages count rows."""

    def place_of(example_id: str) -> str:
        shard, number = map(int, example_id.split(":"))
        return f"{names[shard]}:{number // parts_per_row + 1}"

    return place_of


def classified(judged: Judged, decisions: Decisions) -> Callable[[int], Record]:
    """The label and prediction of an example, each by name, and the probabilities, to six decimal places."""
    told = decisions.told(judged.outputs)

    def of(index: int) -> Record:
        truth = judged.references[index] > 0.5 if decisions.several else judged.references[index]
        return {"label": decisions.named(truth), **told(index)}

    return of


def measured(judged: Judged) -> Callable[[int], Record]:
    """The number of an example, and the predicted one."""
    return lambda index: {"label": shortest(judged.references[index]), "prediction": shortest(judged.outputs[index])}


def shortest(number: Any) -> float:
    """A number of float32 as it was written: the fewest digits that tell it from others, 5.37 and no 5.36999988."""
    return float(str(np.float32(number)))
