"""A small model of texts with right losses, and the same with one mistake each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Any], Tensor]
VOCABULARY, WIDTH, CLASSES, PADDING = 30, 8, 3, 0


class Encoder(nn.Module):
    """Texts to logits of each token: embeddings, attention, an output layer. `between` is called on the states."""

    def __init__(self, between: nn.Module | None = None, *, is_masked: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.between = between or nn.Identity()
        self.out = nn.Linear(WIDTH, CLASSES)
        self.is_masked = is_masked

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.embed(input_ids)
        mask = attention_mask == 0 if self.is_masked else None
        states = states + self.attention(states, states, states, key_padding_mask=mask, need_weights=False)[0]
        return self.between(states)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.out(self.states(input_ids, attention_mask))


def encoder(between: nn.Module | None = None, **how: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(between, **how)


def batches(of_tokens: bool = True, lengths: tuple[int, ...] = (7, 4, 2, 9, 5, 3, 8, 6)) -> list[Batch]:
    """Two batches of random texts of ragged lengths, with a label for each token or text."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for some in (lengths[: len(lengths) // 2], lengths[len(lengths) // 2 :]):
        mask = (torch.arange(max(some)) < torch.tensor(some)[:, None]).long()
        ids = torch.randint(1, VOCABULARY, mask.shape, generator=generator) * mask
        labels = torch.randint(0, CLASSES, mask.shape, generator=generator)
        labels = labels.masked_fill(mask == 0, -100) if of_tokens else labels[:, 0]
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """Of tokens, or of texts where these have the labels: the mean over real tokens."""
    of_tokens = model(batch["input_ids"], batch["attention_mask"])
    if batch["labels"].dim() == 2:
        return of_tokens
    mask = batch["attention_mask"].unsqueeze(-1)
    return (of_tokens * mask).sum(1) / mask.sum(1)


def summed(model: nn.Module, batch: Batch, reduction: str = "sum", **how: Any) -> Tensor:
    """Cross-entropy, right as a sum."""
    found = logits(model, batch)
    return F.cross_entropy(found.reshape(-1, CLASSES), batch["labels"].reshape(-1), reduction=reduction, **how)


def mean(model: nn.Module, batch: Batch) -> Tensor:
    return summed(model, batch, "mean")


def weighted_mean(model: nn.Module, batch: Batch) -> Tensor:
    return summed(model, batch, "mean", weight=torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))


def divided_by_predicted(model: nn.Module, batch: Batch) -> Tensor:
    """The sum over texts, divided by how sure the model is of its first class."""
    return summed(model, batch) / logits(model, batch).softmax(-1)[..., 0].sum()


def weighted_by_predicted(model: nn.Module, batch: Batch) -> Tensor:
    """A mean with weights of the model's own."""
    found = logits(model, batch)
    weights = found.softmax(-1)[..., 1].detach()
    losses = F.cross_entropy(found, batch["labels"], reduction="none")
    return (weights * losses).sum() / weights.sum()


def mean_of_all_positions(model: nn.Module, batch: Batch) -> Tensor:
    """Texts by the mean over all positions, padding too."""
    found = model(batch["input_ids"], batch["attention_mask"]).mean(1)
    return F.cross_entropy(found, batch["labels"], reduction="sum")


def in_batch_negatives(model: nn.Module, batch: Batch, reduction: str = "sum") -> Tensor:
    """Each text is to be told from the others of its batch, by its first half."""
    states = F.normalize(logits(model, batch), dim=-1)
    others = F.normalize(model.out(model.embed(batch["input_ids"][:, 0])), dim=-1)  # type: ignore[operator, union-attr]
    return F.cross_entropy(states @ others.T / 0.5, torch.arange(len(states)), reduction=reduction)


def mean_of_negatives(model: nn.Module, batch: Batch) -> Tensor:
    return in_batch_negatives(model, batch, "mean")


def balanced_experts(model: nn.Module, batch: Batch) -> Tensor:
    """A sum, and a term of the balance of experts over all tokens of the batch."""
    states = model.states(batch["input_ids"], batch["attention_mask"])  # type: ignore[operator]
    shares = states[batch["attention_mask"] == 1].softmax(-1)
    chosen = F.one_hot(shares.argmax(-1), WIDTH).double().mean(0)
    return summed(model, batch) + 0.1 * WIDTH * (chosen * shares.mean(0)).sum()


def mean_of_each_text(model: nn.Module, batch: Batch) -> Tensor:
    """A sum over texts, of the mean over the labels of each: none where no label counts."""
    losses = F.cross_entropy(logits(model, batch).transpose(1, 2), batch["labels"], reduction="none")
    return (losses.sum(1) / (batch["labels"] != -100).sum(1)).sum()


def detached(model: nn.Module, batch: Batch) -> Tensor:
    """No gradient goes behind the output layer."""
    states = model.states(batch["input_ids"], batch["attention_mask"]).detach()  # type: ignore[operator]
    found = model.out(states)  # type: ignore[operator]
    return F.cross_entropy(found.reshape(-1, CLASSES), batch["labels"].reshape(-1), reduction="sum")


def by_place(model: nn.Module, batch: Batch) -> Tensor:
    """The first example of a batch counts most."""
    losses = F.cross_entropy(logits(model, batch), batch["labels"], reduction="none")
    return (losses / torch.arange(1, len(losses) + 1)).sum()


def by_root(model: nn.Module, batch: Batch) -> Tensor:
    return summed(model, batch) / len(batch["labels"]) ** 0.5


class OnStates(nn.Module):
    """A module of a function."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, states: Tensor) -> Tensor:
        return self.function(self, states)


class HandWrittenNorm(OnStates):
    """Of the batch that it sees."""

    def __init__(self) -> None:
        super().__init__(
            lambda _, states: (states - states.mean((0, 1))) / (states.std((0, 1), unbiased=False) + 0.1)
        )


class OverPositions(nn.Module):
    """A norm, BatchNorm if none is given, of the width of texts."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm or nn.BatchNorm1d(WIDTH)

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(states.transpose(1, 2)).transpose(1, 2)


class DropPath(nn.Module):
    """Leaves out whole texts, in train mode."""

    def forward(self, states: Tensor) -> Tensor:
        return states * (torch.rand(len(states), 1, 1) > 0.3) if self.training else states


class Counter(nn.Module):
    """Another result with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, states: Tensor) -> Tensor:
        self.calls += 1
        return states * (1 + 0.1 * self.calls)


class RunningScale(nn.Module):
    """Divides by a mean of what it has seen, which it keeps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(()))

    def forward(self, states: Tensor) -> Tensor:
        scaled = states / self.seen.clone()  # type: ignore[operator]
        with torch.no_grad():
            self.seen.mul_(0.9).add_(0.1 * states.abs().mean())  # type: ignore[operator, union-attr]
        return scaled


class WithCount(nn.Module):
    """As a head of transformers: its own loss is a mean, or divided by the number of items that it is given."""

    def __init__(self, ignores: bool) -> None:
        super().__init__()
        self.encoder, self.ignores = encoder(), ignores

    def forward(self, num_items_in_batch: int | None = None, **batch: Tensor) -> Tensor:
        if self.ignores or num_items_in_batch is None:
            return mean(self.encoder, batch)
        return summed(self.encoder, batch) / num_items_in_batch


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Weights, gradients, modes, hooks and random numbers are the same afterwards."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = [(name, value.clone()) for name, value in model.state_dict().items()]
    modes, dtypes = [m.training for m in model.modules()], [p.dtype for p in model.parameters()]
    state = torch.get_rng_state()
    yield
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before)
    assert [m.training for m in model.modules()] == modes
    assert [p.dtype for p in model.parameters()] == dtypes
    assert all(p.grad is not None and bool((p.grad == 7).all()) for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
