"""Windows with a known gradient: tiny models in float64, and one unsplit batch in plain torch as the oracle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from hf_accum.accumulation.accumulate import accumulate
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.losses import IGNORE, BinaryCrossEntropy, CrossEntropy, Objective, SquaredError
from hf_accum.accumulation.window import Window

NUM_CLASSES = 3
CLASS_WEIGHTS = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
POSITIVE_WEIGHTS = torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64)


@dataclass(frozen=True)
class Task:
    """A model's head, this project's loss, and the loss of the whole window as plain torch computes it."""

    objective: Objective
    whole_loss: Callable[[Tensor, Tensor], Tensor]
    of_tokens: bool = False
    num_labels: int = NUM_CLASSES


def _cross_entropy(weights: Tensor | None, smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, labels: F.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        weight=None if weights is None else weights.to(logits.device),
        label_smoothing=smoothing,
        ignore_index=IGNORE,
    )


TASKS = {
    "plain": Task(CrossEntropy(), _cross_entropy(None, 0.0)),
    "class weights": Task(CrossEntropy(CLASS_WEIGHTS), _cross_entropy(CLASS_WEIGHTS, 0.0)),
    "weights and smoothing": Task(CrossEntropy(CLASS_WEIGHTS, 0.2), _cross_entropy(CLASS_WEIGHTS, 0.2)),
    "multi-label": Task(
        BinaryCrossEntropy(POSITIVE_WEIGHTS),
        lambda logits, labels: F.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=POSITIVE_WEIGHTS.to(logits.device)
        ),
    ),
    "regression": Task(SquaredError(), lambda logits, labels: F.mse_loss(logits.squeeze(-1), labels), num_labels=1),
    "tokens": Task(CrossEntropy(), _cross_entropy(None, 0.0), of_tokens=True),
    "tokens, weights and smoothing": Task(
        CrossEntropy(CLASS_WEIGHTS, 0.1), _cross_entropy(CLASS_WEIGHTS, 0.1), of_tokens=True
    ),
}


def tiny_bert(dropout: float = 0.0, **more: Any) -> BertConfig:
    """Of 50 tokens."""
    return BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **more,
    )


def make_model(task: Task, seed: int = 0) -> nn.Module:
    """A tiny BERT in float64 and train mode, without dropout."""
    torch.manual_seed(seed)
    config = tiny_bert(num_labels=task.num_labels)
    kind = BertForTokenClassification if task.of_tokens else BertForSequenceClassification
    return kind(config).double().train()


def make_examples(task: Task, lengths: Sequence[int], seed: int = 0) -> list[Example]:
    """Examples of the given lengths, with random tokens and labels; of token labels about a third ignored."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for index, length in enumerate(lengths):
        label = _random_label(task, length, generator)
        ids = torch.randint(1, 50, (length,), generator=generator)
        features = {"input_ids": ids, "label": label}
        examples.append(Example(str(index), length, task.objective.weight(label), features))
    return examples


def _random_label(task: Task, length: int, generator: torch.Generator) -> Tensor:
    if task.of_tokens:
        labels = torch.randint(0, NUM_CLASSES, (length,), generator=generator)
        ignored = torch.rand(length, generator=generator) < 0.3
        ignored[0] = False
        return labels.masked_fill(ignored, IGNORE)
    if isinstance(task.objective, BinaryCrossEntropy):
        return torch.randint(0, 2, (NUM_CLASSES,), generator=generator).double()
    if isinstance(task.objective, SquaredError):
        return torch.randn((), generator=generator, dtype=torch.float64)
    return torch.randint(0, NUM_CLASSES, (), generator=generator)


def batch(examples: Sequence[Example], device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], Tensor]:
    """Padded inputs and labels, on a device."""
    longest = max(example.length for example in examples)

    def padded(values: Tensor, fill: int) -> Tensor:
        return F.pad(values, (0, longest - len(values)), value=fill)

    ids = torch.stack([padded(e.features["input_ids"], 0) for e in examples])
    labels = [e.features["label"] for e in examples]
    if labels[0].ndim and len(labels[0]) == examples[0].length and labels[0].dtype == torch.long:
        labels = [padded(label, IGNORE) for label in labels]
    inputs = {"input_ids": ids.to(device), "attention_mask": (ids != 0).long().to(device)}
    return inputs, torch.stack(labels).to(device)


def make_window(
    examples: Sequence[Example],
    dummy: Example,
    *,
    rank: int = 0,
    whole: Sequence[Example],
) -> WindowExecution:
    """The window `whole` as the rank sees it that has `examples` of it, to be run."""
    window = Window(
        step=1,
        epoch=0,
        seed=0,
        examples=tuple(examples),
        dummy=dummy,
        rank=rank,
        num_examples=len(whole),
        num_items=sum(e.weight for e in whole),
        num_tokens=sum(e.length for e in whole),
        digest="",
    )
    return WindowExecution(window)


def unsplit_gradient(model: nn.Module, task: Task, examples: Sequence[Example]) -> tuple[dict[str, Tensor], float]:
    """The oracle: one batch, torch's own mean loss, autograd. Leaves no gradient behind."""
    inputs, labels = batch(examples, next(model.parameters()).device)
    loss = task.whole_loss(model(**inputs).logits, labels)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named])
    return {name: g for (name, _), g in zip(named, gradients, strict=True)}, loss.item()


def assert_window_has_gradient_of(
    expected: Tensor, accelerator: Accelerator, model: Any, task: Any, examples: Sequence[Example], size: int
) -> None:
    """The examples as a window, in micro-batches of so many, have the gradient of the mean loss, and that loss."""
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(expected, list(named.values()), allow_unused=True)
    reference = {name: g for name, g in zip(named, gradients, strict=True) if g is not None}
    window = make_window(examples, examples[0], whole=examples)
    for micro_batch in window.micro_batches(size):
        with accumulate(accelerator, model, micro_batch):
            inputs, targets = task.collate(micro_batch.examples, micro_batch.length)
            loss = task.summed_loss(model, (inputs, targets))
            accelerator.backward(micro_batch.scaled(loss))
    assert largest_relative_difference(model, reference) <= 1e-12
    assert float(window.loss_sum()) / window.window.num_items == pytest.approx(expected.item(), rel=1e-12)


def largest_relative_difference(model: nn.Module, reference: dict[str, Tensor]) -> float:
    """Over all parameters, relative to the largest element of the reference gradient; itself where that is zero."""
    scale = max(float(gradient.abs().max()) for gradient in reference.values())
    gradients = dict(model.named_parameters())
    differences = []
    for name, expected in reference.items():
        found = gradients[name].grad
        differences.append(float((expected if found is None else found - expected).abs().max()))
    return max(differences) / (scale or 1.0)
