"""The tuner on a plain module finds what brute force finds, and leaves everything as it was."""

import json
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from workload_cases import Counter

from hf_accum.accumulation.splitting import Cutter
from hf_accum.errors import OutOfMemory, UserError
from hf_accum.tuner.module_capacity import FoundCapacity, find_capacity

MAX_LENGTH, VOCABULARY = 24, 20


class Reader(nn.Module):
    """Of no library: attention over tokens, with a mask of each token with each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(VOCABULARY, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.words(tokens)
        y, _ = self.attention(x, x, x, attn_mask=mask.repeat_interleave(2, 0), need_weights=False)
        return self.head(self.dropout(torch.relu(x + y)).mean(1))


def summed_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["tokens"], batch["mask"]), batch["label"], reduction="sum")


def make_batch(num_examples: int, length: int) -> dict[str, Any]:
    tokens = torch.arange(num_examples * length).view(num_examples, length) % VOCABULARY
    mask = torch.zeros(num_examples, length, length, dtype=torch.bool)
    return {"tokens": tokens, "mask": mask, "label": torch.arange(num_examples) % 3, "id": ["a"] * num_examples}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    decayed, others = list(model.parameters())[:1], list(model.parameters())[1:]
    groups: Any = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3)


def real_peak(num_examples: int, length: int) -> int:
    """Of two windows of two micro-batches each, with a step."""
    model = Reader().train()
    optimizer = adamw(model)
    with Counter(model.parameters()) as counter:
        for _ in range(2):
            for _ in range(2):
                summed_loss(model, make_batch(num_examples, length)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return counter.peak


@pytest.mark.parametrize("prepared", [False, True])
def test_it_is_what_brute_force_finds_at_each_length(prepared: bool, accelerator: Accelerator) -> None:
    model = Reader().train()
    optimizer = adamw(model)
    if prepared:
        model, optimizer = accelerator.prepare(model, optimizer)
    weights = [p.detach().clone() for p in model.parameters()]
    budget = real_peak(6, MAX_LENGTH) + 100
    random_state = torch.get_rng_state()
    capacity = find_capacity(
        model, optimizer, summed_loss, make_batch(3, 7), max_length=MAX_LENGTH, memory_budget=budget
    )
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), weights, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), random_state)
    for length in (MAX_LENGTH, 12, 5):
        largest = found = capacity.num_examples(length)
        assert real_peak(found, length) <= budget
        while real_peak(largest + 1, length) <= budget:
            largest += 1
        assert found >= largest * 0.9 - 1, length


def found() -> FoundCapacity:
    model = Reader().train()
    return find_capacity(
        model, adamw(model), summed_loss, make_batch(3, 7), max_length=MAX_LENGTH, memory_budget="200KiB"
    )


def test_it_goes_to_json_and_back_and_micro_batches_take_it() -> None:
    capacity = found()
    again = FoundCapacity.from_json(json.loads(json.dumps(capacity.as_json())))
    lengths = range(1, MAX_LENGTH + 1)
    assert [again.num_examples(n) for n in lengths] == [capacity.num_examples(n) for n in lengths]
    assert str(again) == str(capacity)
    assert Cutter.of(capacity).capacity is capacity


def test_it_prints_as_a_table() -> None:
    capacity = found()
    first, head, *rows = str(capacity).splitlines()
    assert "virtual device" in first
    assert head.split() == ["length", "examples", "at", "once"]
    assert [tuple(map(int, row.split())) for row in rows] == [(n, capacity.num_examples(n)) for n in (24, 12)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def test_batches_of_one_size_need_no_length() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    capacity = find_capacity(
        model,
        optimizer,
        lambda m, batch: m(batch[0]).square().sum(),
        (torch.ones(2, 3, 8, 8),),
        memory_budget="80KiB",
    )
    assert 1 < capacity.num_examples(1) < 256
    assert str(capacity).splitlines()[-1].split()[0] == "any"
    assert str(capacity).startswith(f"at most {capacity.num_examples(1)} at once; ")


def test_more_than_was_asked_for_is_not_tried() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = lambda m, batch: m(batch).square().sum()  # noqa: E731
    batch = torch.ones(2, 3, 8, 8)
    assert find_capacity(model, optimizer, loss, batch, max_examples=5, memory_budget="1GiB").num_examples(1) == 5
    with pytest.raises(OutOfMemory, match="not even one example fits: it needs"):
        find_capacity(model, optimizer, loss, batch, memory_budget="2KiB")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(2, 5, 5), "input_ids": torch.zeros(2, 5).long()}, "`x` of the batch has the shape"),
        ({"x": torch.zeros(2, 3), "length": 9}, "no tensor of the batch has a dimension of its length, 9"),
        ({"x": 3}, "without tensors"),
    ],
)
def test_a_batch_of_which_no_others_can_be_made_is_refused(batch: Any, message: str) -> None:
    model = Net()
    length = (lambda b: b["length"]) if "length" in batch else (lambda b: 5)
    with pytest.raises(UserError, match=message):
        find_capacity(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            lambda m, b: m(b["x"]).sum(),
            batch,
            max_length=8,
            length=length,
            memory_budget="1MiB",
        )


def test_what_a_list_has_for_each_row_is_repeated_too() -> None:
    """The boxes of each image."""
    model = nn.Linear(3, 1)
    sizes: set[tuple[int, int]] = set()

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        sizes.add((len(batch["x"]), len(batch["labels"])))
        return model(batch["x"]).sum() + sum(model(label["boxes"]).sum() for label in batch["labels"])

    batch = {"x": torch.ones(2, 3), "labels": [{"boxes": torch.ones(n, 3)} for n in (1, 2)]}
    find_capacity(model, torch.optim.SGD(model.parameters()), loss, batch, max_examples=4, memory_budget="1MiB")
    assert sizes == {(n, n) for n, _ in sizes}
    assert (4, 4) in sizes


def test_a_model_without_parameters_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    with pytest.raises(UserError, match="a model of the type BatchNorm1d without parameters"):
        find_capacity(nn.BatchNorm1d(3, affine=False), optimizer, lambda m, b: m(b).sum(), torch.ones(2, 3))


def test_a_model_of_which_nothing_is_trained_is_refused() -> None:
    model = Net().requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="a model of the type Net of which no parameter is to be trained"):
        find_capacity(model, optimizer, lambda m, b: m(b).sum(), torch.ones(2, 3, 8, 8))


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="the optimizer has 4 parameters that are not of this model"):
        find_capacity(
            Net(), torch.optim.SGD(Net().parameters(), lr=0.1), lambda m, b: m(b).sum(), torch.ones(1, 3, 8, 8)
        )


@pytest.mark.parametrize("how", [{"max_examples": 0}, {"max_length": 0}])
def test_a_limit_that_is_none_is_refused(how: dict[str, Any]) -> None:
    model = Net()
    with pytest.raises(UserError, match="has to be at least 1"):
        find_capacity(
            model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, b: m(b).sum(), torch.ones(1, 3, 8, 8), **how
        )
