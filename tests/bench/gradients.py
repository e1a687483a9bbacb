"""The gradient of one optimizer step, as different loops compute it for the same examples.

The reference is plain torch: all examples of a window as one batch in float64, the mean loss over its
items, one backward. Beside it, on the same windows and the same weights:

- this project's loop (`micro_batches`, `accumulate`, the task's summed loss), in float64 and in float32;
- the stock `transformers.Trainer`, at a window as one batch and as single examples, in float64: what the
  parameters' `.grad` is right before its optimizer's step (no clipping, learning rate 0);
- the loop of accelerate's documentation (`with accelerator.accumulate(model)`, the model's own mean loss,
  `accelerator.backward`), likewise.

Models: BERT with random weights, 2 layers, 32 wide, no dropout. Sequence classification has one label for
each text; token classification one for each token, many of them -100 (ignored). Lengths are ragged in
both. Every text has at least one label that counts: without, a mean over it is NaN.

The table shows, over all windows: the norm of the gradient divided by that of the reference (least and
greatest), the least cosine to the reference, and the greatest max |g - reference| / max |reference|.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from common import argument_parser, print_header, print_table, source_of, use_threads
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from hf_accum import CrossEntropy, WindowExecution, accumulate
from hf_accum.recipe import Example, WindowStream, ranks_of, start_accelerator
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.text_classification.task import TextClassification
from hf_accum.tasks.token_classification.task import EntityTagging

IGNORE = -100
NUM_CLASSES = 5
NAMES = {index: f"class {index}" for index in range(NUM_CLASSES)}
VOCABULARY = 200
LONGEST = 48

Text = Mapping[str, list[int]]
"""`input_ids` and `labels` of one example: a single label, or one for each token."""

GradientOf = Callable[[PreTrainedModel, Sequence[Text]], Tensor]
"""The gradient of all parameters, flat, in float64, that a loop has at the optimizer step of a window."""


@dataclass(frozen=True)
class Way:
    """A loop to compare, at one cut of the window and one precision."""

    loop: str
    cut: str
    dtype: torch.dtype
    gradient: GradientOf


@dataclass(frozen=True)
class Comparison:
    """How a gradient lies to the reference."""

    norm_ratio: float
    cosine: float
    largest_difference: float


def draw_window(rng: random.Random, num_examples: int, of_tokens: bool) -> list[Text]:
    """Random texts of ragged lengths, with random labels."""
    window = []
    for _ in range(num_examples):
        length = rng.randint(4, LONGEST)
        labels = [rng.randrange(NUM_CLASSES) for _ in range(length if of_tokens else 1)]
        if of_tokens:
            kept = rng.randint(1, length)
            for place in rng.sample(range(length), length - kept):
                labels[place] = IGNORE
        window.append({"input_ids": [rng.randrange(1, VOCABULARY) for _ in range(length)], "labels": labels})
    return window


def collate(texts: Sequence[Text]) -> dict[str, Tensor]:
    """Texts as one padded batch; labels of shape (texts,) or (texts, longest)."""
    longest = max(len(text["input_ids"]) for text in texts)

    def padded(values: Sequence[int], filling: int) -> list[int]:
        return [*values, *[filling] * (longest - len(values))]

    of_tokens = any(len(text["labels"]) > 1 for text in texts)
    labels = [padded(text["labels"], IGNORE) if of_tokens else text["labels"][0] for text in texts]
    return {
        "input_ids": torch.tensor([padded(text["input_ids"], 0) for text in texts]),
        "attention_mask": torch.tensor([padded([1] * len(text["input_ids"]), 0) for text in texts]),
        "labels": torch.tensor(labels),
    }


def flat_gradient(model: nn.Module) -> Tensor:
    """All gradients as one vector in float64; none counts as zero."""
    return torch.cat(
        [(p.new_zeros(p.shape) if p.grad is None else p.grad).double().flatten() for p in model.parameters()]
    )


def of_one_batch(model: PreTrainedModel, texts: Sequence[Text]) -> Tensor:
    """The reference: plain torch, one batch, the mean over the window's items."""
    batch = collate(texts)
    labels = batch.pop("labels")
    logits = model(**batch).logits
    F.cross_entropy(logits.reshape(-1, NUM_CLASSES), labels.reshape(-1), ignore_index=IGNORE).backward()
    return flat_gradient(model)


def task_of(model: PreTrainedModel) -> TextClassification | EntityTagging:
    """What this project trains such a model for; the texts are tokens already."""
    names = tuple(NAMES.values())
    if isinstance(model, BertForTokenClassification):
        return EntityTagging(names, CrossEntropy(), None, LONGEST)
    labels = LabelColumn("labels", "single_label_classification", names)
    return TextClassification("text", labels, CrossEntropy(), None, LONGEST)


def of_this_project(micro_batch_size: int) -> GradientOf:
    """This project's loop, as a recipe has it."""

    def gradient(model: PreTrainedModel, texts: Sequence[Text]) -> Tensor:
        task = task_of(model)

        def weight(text: Text) -> float:
            return task.objective.weight(torch.tensor(text["labels"]))

        def encode(rows: Sequence[tuple[str, Text]]) -> list[Example]:
            return [Example(name, len(text["input_ids"]), weight(text), text) for name, text in rows]

        accelerator = start_accelerator()
        prepared = accelerator.prepare(model)
        windows = WindowStream(
            source_of(texts),
            lambda row: row,
            encode,
            ranks=ranks_of(accelerator),
            effective_batch_size=len(texts),
            seed=0,
        )
        for window in windows:
            for micro_batch in WindowExecution(window).micro_batches(micro_batch_size):
                with accumulate(accelerator, prepared, micro_batch):
                    batch = collate([example.features for example in micro_batch.examples])
                    labels = batch.pop("labels")
                    loss = task.summed_loss(prepared, (batch, labels))
                    accelerator.backward(micro_batch.scaled(loss))
        return flat_gradient(model)

    return gradient


class _Capture(TrainerCallback):
    gradient: Tensor | None = None

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        assert self.gradient is None, "one optimizer step was asked for"
        self.gradient = flat_gradient(model)


def of_stock_trainer(batch_size: int) -> GradientOf:
    """`transformers.Trainer` on a dataset of one window, one step."""

    def gradient(model: PreTrainedModel, texts: Sequence[Text]) -> Tensor:
        capture = _Capture()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model,
                TrainingArguments(
                    folder,
                    per_device_train_batch_size=batch_size,
                    gradient_accumulation_steps=len(texts) // batch_size,
                    max_steps=1,
                    max_grad_norm=0.0,
                    learning_rate=0.0,
                    remove_unused_columns=False,
                    dataloader_pin_memory=False,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    use_cpu=True,
                ),
                data_collator=collate,
                train_dataset=list(texts),  # type: ignore[arg-type]
                callbacks=[capture],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        assert capture.gradient is not None
        return capture.gradient

    return gradient


def of_plain_accumulate(batch_size: int) -> GradientOf:
    """The loop of accelerate's guide to gradient accumulation, by the model's own loss."""

    def gradient(model: PreTrainedModel, texts: Sequence[Text]) -> Tensor:
        captured: list[Tensor] = []
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=len(texts) // batch_size)
        prepared, optimizer, loader = accelerator.prepare(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            DataLoader(list(texts), batch_size=batch_size, collate_fn=collate),  # type: ignore[arg-type]
        )
        for batch in loader:
            with accelerator.accumulate(prepared):
                loss = prepared(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    captured.append(flat_gradient(model))
                optimizer.step()
                optimizer.zero_grad()
        (only,) = captured
        return only

    return gradient


def ways(num_examples: int) -> list[Way]:
    """What is compared."""
    n = num_examples
    whole, single = f"{n} x 1", f"1 x {n}"
    double, single_precision = torch.float64, torch.float32
    return [
        Way("hf_accum", "micro-batch 1", double, of_this_project(1)),
        Way("hf_accum", "micro-batch 3", double, of_this_project(3)),
        Way("hf_accum", "micro-batch 1", single_precision, of_this_project(1)),
        Way("hf_accum", "micro-batch 3", single_precision, of_this_project(3)),
        Way("one batch, plain torch", whole, single_precision, of_one_batch),
        Way("stock Trainer", whole, double, of_stock_trainer(n)),
        Way("stock Trainer", single, double, of_stock_trainer(1)),
        Way("plain accumulate", whole, double, of_plain_accumulate(n)),
        Way("plain accumulate", single, double, of_plain_accumulate(1)),
    ]


def compare(gradient: Tensor, reference: Tensor) -> Comparison:
    """A gradient beside the reference."""
    return Comparison(
        norm_ratio=float(gradient.norm() / reference.norm()),
        cosine=float(F.cosine_similarity(gradient, reference, dim=0)),
        largest_difference=float((gradient - reference).abs().max() / reference.abs().max()),
    )


def build_model(of_tokens: bool) -> PreTrainedModel:
    """A small BERT with random weights, in train mode."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=NAMES,
    )
    torch.manual_seed(0)
    model = (BertForTokenClassification if of_tokens else BertForSequenceClassification)(config)
    return model.double().train()


def measure(of_tokens: bool, num_windows: int, num_examples: int, seed: int) -> None:
    """Compare all ways on some windows, and print the table."""
    rng = random.Random(seed)
    model = build_model(of_tokens)
    found: dict[tuple[str, str, str], list[Comparison]] = {}
    for _ in range(num_windows):
        texts = draw_window(rng, num_examples, of_tokens)
        reference = of_one_batch(deepcopy(model), texts)
        for way in ways(num_examples):
            copied = deepcopy(model)
            copied.to(way.dtype)  # type: ignore[arg-type]
            gradient = way.gradient(copied, texts)
            key = (way.loop, way.cut, str(way.dtype).removeprefix("torch."))
            found.setdefault(key, []).append(compare(gradient, reference))
    kind = "token" if of_tokens else "sequence"
    print(f"{kind} classification, {num_windows} windows of {num_examples} texts\n")
    print_table(
        ("loop", "cut", "precision", "norm / reference", "least cosine", "largest relative difference"),
        [
            (
                *key,
                _span([c.norm_ratio for c in comparisons]),
                f"{min(c.cosine for c in comparisons):.6f}",
                f"{max(c.largest_difference for c in comparisons):.1e}",
            )
            for key, comparisons in found.items()
        ],
    )


def _span(values: Sequence[float]) -> str:
    least, greatest = f"{min(values):.3f}", f"{max(values):.3f}"
    return least if least == greatest else f"{least} to {greatest}"


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num_windows", type=int, default=5, help="windows to compare on (default: %(default)s)")
    parser.add_argument("--num_examples", type=int, default=8, help="texts in a window (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the windows (default: %(default)s)")
    arguments: argparse.Namespace = parser.parse_args()
    use_threads(arguments.threads)
    logging.set_verbosity_error()
    print_header(arguments.threads)
    for of_tokens in (False, True):
        measure(of_tokens, arguments.num_windows, arguments.num_examples, arguments.seed)


if __name__ == "__main__":
    main()
