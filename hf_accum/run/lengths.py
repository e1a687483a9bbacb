"""How long the examples of a dataset are, before a training."""

from typing import Any

import numpy as np

from hf_accum.accumulation.example import inputs_of
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.split import SplitData
from hf_accum.tasks.task import PoolsParts, Task


def notes_of_lengths(data: SplitData, task: Task[Any], max_length: int) -> list[str]:
    """The lengths of examples in tokens, and how many are cut; of the sample of rows that the pass over them kept.

    Of a sample the longest is the one with most characters. Texts in windows are told as a whole. None where no rows
    were kept, or all have one length.
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
    encoded = task.encode(prepared)
    examples = encoded if isinstance(task, PoolsParts) else inputs_of(encoded)
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
        most = (
            f"`max_length` {max_length}" if task.lengths.cut_by == "max_length" else f"`{task.lengths.cut_by}` allow"
        )
        cut = f"{many} longer than {most} and lose their end"
    num_parts = [len(example.parts) for example in examples if len(example.parts) > 1]
    if num_parts:
        share = f"{len(num_parts):,}" if is_all else f"about {len(num_parts) / len(lengths):.1%}"
        cut += f"; {share} have several windows, the longest {max(num_parts):,} (what these share counts twice)"
    parts = f"5 % at most {low:,}, half at most {middle:,}, 95 % at most {high:,}, the longest {lengths.max():,}"
    return [f"lengths in {task.lengths.unit}: {parts}; {cut}{of}"]
