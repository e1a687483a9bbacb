"""How long the examples of a dataset are, before a training."""

from typing import Any

import numpy as np

from hf_accum.accumulation.example import inputs_of
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.split import SplitData
from hf_accum.tasks.task import Task


def notes_of_lengths(data: SplitData, task: Task[Any], max_length: int) -> list[str]:
    """The lengths of examples in tokens, and how many are cut; of the sample of rows that the pass over them kept.

    Of a sample the longest is the one with most characters. None where no rows were kept, or all have one length.
    """
    if not task.lengths.vary or not data.sample:
        return []
    prepared: list[tuple[str, Any]] = []
    for number, row in enumerate(data.sample):
        try:
            one = task.prepare(row)
        except BadRow:  # only for what the pass did not look at; it is told, or counted, when it is read
            continue
        if one is not None:
            prepared.append((f"sample:{number}", one))
    examples = inputs_of(task.encode(prepared))
    lengths = np.array([example.length + example.num_truncated_tokens for example in examples])
    if not len(lengths):
        return []
    low, middle, high = (int(np.quantile(lengths, share, method="inverted_cdf")) for share in (0.05, 0.5, 0.95))
    total = (data.num_train or 0) + (data.num_held_out or 0)
    is_all = len(data.sample) >= total
    of = "" if is_all else f", of a sample of {len(data.sample):,} of the {total:,} examples"
    num_cut = sum(example.num_truncated_tokens > 0 for example in examples)
    cut = "none is cut"
    if num_cut:
        many = f"{num_cut:,} are" if is_all else f"about {num_cut / len(lengths):.1%} are"
        cut = f"{many} longer than `max_length` {max_length} and lose their end"
    parts = f"5 % at most {low:,}, half at most {middle:,}, 95 % at most {high:,}, the longest {lengths.max():,}"
    return [f"lengths in {task.lengths.unit}: {parts}; {cut}{of}"]
