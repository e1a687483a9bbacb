"""The own loss of a transformers head, of a hub id or a folder, on made-up rows."""

from hf_accum.gradient_check.blocks import keep_few_blocks
from hf_accum.gradient_check.check import check
from hf_accum.gradient_check.heads import HEADS, made_up_rows, own_loss
from hf_accum.gradient_check.report import Report
from hf_accum.models.loading import load_model


def check_head(name: str, head: str) -> Report:
    """Check what `AutoModelFor...` gives as its loss of labels; weights that a head lacks are random.

    Raises:
        UserError: if there is no such model, or it has no such head.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    loaded = load_model(getattr(transformers, HEADS[head]), name, None, max_length=1)
    notes = [note for note in [keep_few_blocks(loaded.model)] if note]
    report = check(
        loaded.model, own_loss, [made_up_rows(loaded.model, head)], name=f"{type(loaded.model).__name__} of {name}"
    )
    return Report(**{**vars(report), "notes": (*notes, "made-up rows", *report.notes)})
