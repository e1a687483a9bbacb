"""A table of transformers' heads: whether the own loss of each is right under cuts, and what the Trainer gives."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hf_accum.errors import first_line
from hf_accum.gradient_check.check import check
from hf_accum.gradient_check.heads import HEADS, made_up_rows, own_loss
from hf_accum.gradient_check.tiny_configs import tiny_config

_TEXTS = [
    "albert",
    "bart",
    "bert",
    "biogpt",
    "bloom",
    "camembert",
    "convbert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "fnet",
    "funnel",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "llama",
    "longformer",
    "mistral",
    "mobilebert",
    "modernbert",
    "mpnet",
    "mt5",
    "opt",
    "phi3",
    "qwen2",
    "roberta",
    "roformer",
    "squeezebert",
    "t5",
    "xlm-roberta",
    "xlnet",
]
_IMAGES = [
    "beit",
    "convnext",
    "convnextv2",
    "data2vec-vision",
    "deit",
    "dinov2",
    "dpt",
    "efficientnet",
    "mobilenet_v2",
    "mobilevit",
    "poolformer",
    "regnet",
    "resnet",
    "segformer",
    "swin",
    "swinv2",
    "upernet",
    "vit",
]
_SOUNDS = [
    "audio-spectrogram-transformer",
    "hubert",
    "sew",
    "unispeech",
    "wav2vec2",
    "wav2vec2-bert",
    "wavlm",
    "whisper",
]
ARCHITECTURES = {
    **dict.fromkeys(("image_classification", "semantic_segmentation"), tuple(_IMAGES)),
    "audio_classification": tuple(_SOUNDS),
}
"""Those that are tried for a head; of texts where none are said."""

_IN_WORDS = {
    "count_ignored": "no: a mean, whatever the count",
    "mean_of_means": "no: a mean, and takes no count",
    "batch_statistics": "no: statistics of the batch",
    "padding": "no: padding leaks",
    "interaction": "no: examples see each other",
    "randomness": "no: random numbers that stay",
    "not_finite": "no: not finite on short texts",
}


_INTRODUCTION = """# Which heads are right under accumulation

Does a head of transformers train otherwise when its batch is cut? Each class here has a tiny random model and made-up
rows of uneven lengths. `hf-accum check` compared its own loss of labels in pieces with that of the unsplit batch, in
float64, and ran the Trainer and a plain `accelerator.accumulate` loop on 8 examples in one forward, and one by one.

- **own loss**: yes, if it is a sum over the items, divided by the `num_items_in_batch` that it is given.
- **Trainer**, **accelerate**: the norm of the gradient at 1 x 8, divided by that at 8 x 1. Right is 1.000; 8.000 is
  8 times too large, before clipping. A little off is the mean of means: items of small micro-batches count more.
- **padding leaks**: other lengths of padding change the loss. In question answering padding takes part in the softmax
  over positions.

{number} classes. {versions}, CPU. Made by:

```bash
{command}
```

The recipes here hand the model no labels: they compute summed losses from the logits, which are right for all that
do not say padding, statistics or random numbers. To check your own: [check](check.md)."""


@dataclass(frozen=True)
class HeadRow:
    """What was found of a class; `failed` says why nothing was."""

    head: str
    name: str
    kinds: tuple[str, ...] = ()
    trainer: float | None = None
    accelerate: float | None = None
    failed: str = ""

    @property
    def own_loss(self) -> str:
        """Whether the class's own loss is right under cuts, in words."""
        return "yes" if not self.kinds else "; ".join(_IN_WORDS.get(kind, f"no: {kind}") for kind in self.kinds)

    def as_markdown(self) -> str:
        """A line of the table."""
        factors = ("-" if factor is None else f"{factor:.3f}" for factor in (self.trainer, self.accelerate))
        return f"| {self.name} | {self.own_loss} | {' | '.join(factors)} |"


def classes_of(head: str) -> dict[str, str]:
    """The classes that are tried for a head, by architecture."""
    import transformers

    mapping = getattr(transformers, HEADS[head])._model_mapping._model_mapping
    names = {kind: mapping[kind] for kind in ARCHITECTURES.get(head, tuple(_TEXTS)) if kind in mapping}
    return {kind: name if isinstance(name, str) else name[0] for kind, name in names.items()}


def head_row(head: str, architecture: str, name: str) -> HeadRow:
    """Build a class with a tiny config and random weights, and check its own loss on made-up rows."""
    import torch
    import transformers

    torch.manual_seed(0)
    labels = 2 if head == "question_answering" else 3
    try:
        model = getattr(transformers, name)(tiny_config(architecture, num_labels=labels))
        report = check(model, own_loss, [made_up_rows(model, head)])
    except Exception as error:  # of anybody's architecture
        return HeadRow(head, name, failed=first_line(error))
    faults = tuple(finding.kind for finding in report.findings if finding.severity == "fault")
    by_name = {loop.name: loop.norm_ratio for loop in report.stock}
    return HeadRow(head, name, faults, by_name.get("transformers' Trainer"), by_name.get("accelerate's accumulate"))


def head_rows(heads: Sequence[str] = tuple(HEADS)) -> Iterator[HeadRow]:
    """One after the other: some seconds each."""
    from hf_accum.models.loading import quiet_transformers

    for head in heads:
        for architecture, name in classes_of(head).items():
            with quiet_transformers():
                yield head_row(head, architecture, name)


def as_markdown(rows: Sequence[HeadRow], command: str) -> str:
    """The guide: the table by heads, with the command that makes it, the versions, and what could not be built."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "accelerate", "torch")
    )
    built = [row for row in rows if not row.failed]
    lines = [_INTRODUCTION.format(number=len(built), versions=versions, command=command)]
    for head, auto_class in HEADS.items():
        of_head = [row.as_markdown() for row in built if row.head == head]
        if of_head:
            lines += ["", f"## {head}", "", f"`{auto_class}`", ""]
            lines += ["| class | own loss | Trainer | accelerate |", "| --- | --- | --- | --- |", *of_head]
    failed = [row for row in rows if row.failed]
    if failed:
        lines += ["", "## Not in the table", "", "Could not be built as small, or not be checked:", ""]
        lines += [f"- {row.name} ({row.head}): `{row.failed.replace('`', '')}`" for row in failed]
    return "\n".join(lines) + "\n"
