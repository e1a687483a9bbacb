"""Windows of long texts with a known gradient: a tiny BERT in float64, all texts in one graph of plain torch."""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from failing import Failing
from torch import Tensor, nn
from transformers import BertForSequenceClassification
from window_cases import CLASS_WEIGHTS, NUM_CLASSES, batch, make_window, tiny_bert

from hf_accum import accumulate
from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.execution import MicroBatch, WindowExecution
from hf_accum.accumulation.losses import CrossEntropy
from hf_accum.accumulation.part_cache import LinearLoss, PartCache, pool_parts
from hf_accum.config.long_texts import WindowPooling

OBJECTIVE = CrossEntropy(CLASS_WEIGHTS)
POOLINGS: tuple[WindowPooling, ...] = ("mean", "max", "attention")


def make_classifier(pooling: WindowPooling, dropout: float = 0.0) -> nn.Module:
    """In train mode; for attention with a score behind the logits."""
    torch.manual_seed(0)
    config = tiny_bert(dropout, num_labels=NUM_CLASSES + (pooling == "attention"), initializer_range=0.3)
    return BertForSequenceClassification(config).double().train()


def make_long_texts(counts: Sequence[int], seed: int = 0) -> list[Example]:
    """Texts of so many windows each, of 2 to 9 tokens."""
    draw = random.Random(seed)
    examples = []
    for index, count in enumerate(counts):
        label = torch.tensor(draw.randrange(NUM_CLASSES))
        windows = []
        for number in range(count):
            ids = torch.tensor([draw.randrange(1, 50) for _ in range(draw.randint(2, 9))])
            windows.append(Example(f"{index}:{number}", len(ids), 0.0, {"input_ids": ids, "label": label}))
        length, weight = sum(window.length for window in windows), OBJECTIVE.weight(label)
        features = {"label": label} if count > 1 else windows[0].features
        parts = tuple(windows) if count > 1 else ()
        examples.append(Example(str(index), length, weight, features, 0, parts))
    return examples


def unsplit(model: nn.Module, texts: Sequence[Example], pooling: WindowPooling) -> tuple[dict[str, Tensor], float]:
    """The oracle: a forward of all windows at once, each text pooled by itself, torch's weighted mean, autograd."""
    outputs = model(**batch(inputs_of(texts))[0]).logits
    pooled = []
    for rows in outputs.split([len(text.parts) or 1 for text in texts]):
        match pooling:
            case "mean":
                pooled.append(sum(rows) / len(rows))
            case "max":
                pooled.append(torch.stack([column.max() for column in rows.T]))
            case "attention":
                weights = rows[:, -1].exp() / rows[:, -1].exp().sum()
                pooled.append(weights @ rows[:, :-1])
    labels = torch.stack([text.features["label"] for text in texts])
    loss = F.cross_entropy(torch.stack(pooled), labels, weight=CLASS_WEIGHTS)
    named = list(model.named_parameters())
    gradients = torch.autograd.grad(loss, [p for _, p in named])
    return {name: g for (name, _), g in zip(named, gradients, strict=True)}, loss.item()


def run_window(
    accelerator: Accelerator,
    model: nn.Module,
    texts: Sequence[Example],
    whole: Sequence[Example],
    size: int,
    pooling: WindowPooling,
    rank: int = 0,
    failing: Failing | None = None,
) -> tuple[WindowExecution, list[MicroBatch]]:
    """The loop of a recipe, over a rank's texts of a window; and its micro-batches."""
    armed = nullcontext() if failing is None else failing

    def loss_of(examples: Sequence[Example], outputs: Tensor) -> Tensor:
        with armed:
            labels = torch.stack([text.features["label"] for text in examples])
            return OBJECTIVE(pool_parts(outputs, [len(text.parts) or 1 for text in examples], pooling), labels)

    def outputs_of(model: nn.Module, of: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        with armed:
            return model(**of[0]).logits

    window = make_window(texts, whole[0], rank=rank, whole=whole)
    window.collate = lambda piece, length: batch(piece)
    window.rehearsal = PartCache(partial(accumulate, accelerator, model), model, texts, outputs_of, loss_of)
    seen = []
    for micro_batch in window.micro_batches(size):
        seen.append(micro_batch)
        with accumulate(accelerator, model, micro_batch):
            outputs, target = outputs_of(model, micro_batch.batch), micro_batch.batch[1]
            with armed:
                if isinstance(target, LinearLoss):
                    loss = target(outputs)
                else:
                    loss = OBJECTIVE(pool_parts(outputs, [1] * len(outputs), pooling), target)
                accelerator.backward(micro_batch.scaled(loss))
    return window, seen
