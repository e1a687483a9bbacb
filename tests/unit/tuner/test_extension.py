"""A trace of few blocks says to the byte, and to the event, what a trace of all of them does."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from traced_cases import ARCHITECTURES, Case, make_workload, traces_of
from workload_cases import of_sizes

from hf_accum.tuner import tracing
from hf_accum.tuner.extension import Extension, NotRegular
from hf_accum.tuner.memory_events import MemoryEvents
from hf_accum.tuner.tracing import Trace, Tracer
from hf_accum.tuner.workload import Workload

NUM_BLOCKS = 9
CARD = (8, 6)
POINTS = [(1, 32), (2, 32), (3, 8), (1, 8)]

CHOSEN = [
    (Case("bert", lora=True), CARD),
    (Case("bert", precision="bf16"), None),
    (Case("vit", lora=True), None),
    (Case("llama", lora=True, checkpointing=True, precision="bf16"), CARD),
    (Case("gpt2", checkpointing=True), CARD),
]
OTHERS = [
    (Case(architecture, lora, checkpointing), capability)
    for architecture in ARCHITECTURES
    for lora, checkpointing in [(True, False), (False, True)]
    for capability in (None, CARD)
]
CASES = [
    CHOSEN[0],
    *(
        pytest.param(*case, marks=pytest.mark.by_hand if case[0].architecture == "llama" else pytest.mark.slow)
        for case in CHOSEN[1:]
    ),
    *(pytest.param(*case, marks=pytest.mark.by_hand) for case in OTHERS if case not in CHOSEN),
]


def deep(case: Case, monkeypatch: pytest.MonkeyPatch) -> Workload:
    sizes = ARCHITECTURES[case.architecture]
    name = next(name for name in ("num_hidden_layers", "n_layers", "n_layer") if name in sizes)
    monkeypatch.setitem(ARCHITECTURES, case.architecture, sizes | {name: NUM_BLOCKS})
    return make_workload(case)


def whole(work: Workload, capability: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch) -> list[Trace]:
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "find_repeated_blocks", lambda *_: None)
        return traces_of(Tracer(work, capability), POINTS)


def num_blocks_run(work: Workload, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks the forwards in training mode had, from here on."""
    numbers: list[int] = []
    forward = work.forward

    def count(*args: object) -> object:
        numbers.append(max(len(m) for m in work.model.modules() if isinstance(m, nn.ModuleList)))
        return forward(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(work), "forward", lambda self, *args: count(*args))
    return numbers


@pytest.mark.parametrize(("case", "capability"), CASES, ids=str)
def test_it_is_what_a_trace_of_all_blocks_says(
    case: Case, capability: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = deep(case, monkeypatch)
    expected = whole(work, capability, monkeypatch)
    numbers = num_blocks_run(work, monkeypatch)
    assert traces_of(Tracer(work, capability), POINTS) == expected
    assert set(numbers) == {2, 3, 4}  # of the layers of transformers; those of all nine are never run
    assert numbers.count(2) == len(POINTS)


class Blocks(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def of_blocks(model: nn.Module, chunk: int = 0) -> Workload:
    """With a `chunk`: a loss in pieces of so many positions, more of them where there is more to compute."""

    def forward(model: nn.Module, num_examples: int, length: int) -> Tensor:
        x = model(torch.zeros(num_examples, length, 8)).flatten(0, 1)
        pieces = x.split(chunk) if chunk else [x]
        return torch.stack([torch.exp(piece).sum() for piece in pieces]).sum()

    return of_sizes(
        model,
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1, foreach=False),
        lambda m, n, length, device: forward(m, n, length),
        lambda m, n, length, device: m(torch.zeros(n, length, 8)),
        max_length=16,
    )


def test_a_loss_in_more_pieces_at_another_size_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    work = of_blocks(Blocks(*(nn.Linear(8, 8) for _ in range(NUM_BLOCKS))), chunk=16)
    expected = whole(work, None, monkeypatch)
    assert len({len(trace.training) for trace in expected}) > 1
    numbers = num_blocks_run(work, monkeypatch)
    assert traces_of(Tracer(work), POINTS) == expected
    assert sorted(numbers)[-2:] == [3, 4]  # learned once


class Uneven(nn.Module):
    """A layer that keeps more the further back it is, which nothing in its settings says."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.layer_idx):
            x = torch.tanh(x)
        return self.linear(x)


class Indexed(Blocks):
    """A model that asks for each of its layers by its number."""

    def forward(self, x: Tensor) -> Tensor:
        for number in range(NUM_BLOCKS):
            x = self.layers[number](x)
        return self.head(x)


class Hoarding(Blocks):
    """All states are stacked: with each block more the tensor of the end is larger."""

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for layer in self.layers:
            states.append(torch.tanh(layer(states[-1])))
        return torch.stack(states).sum(0)


@pytest.mark.parametrize(
    "model",
    [
        Blocks(*(Uneven(index) for index in range(NUM_BLOCKS))),
        Indexed(*(nn.Linear(8, 8) for _ in range(NUM_BLOCKS))),
        Hoarding(*(nn.Linear(8, 8) for _ in range(NUM_BLOCKS))),
    ],
    ids=["uneven", "by number", "stacked"],
)
def test_what_does_not_follow_the_rule_is_traced_whole(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    work = of_blocks(model)
    expected = whole(work, None, monkeypatch)
    numbers = num_blocks_run(work, monkeypatch)
    assert traces_of(Tracer(work), POINTS) == expected
    assert numbers[-len(POINTS) :] == [NUM_BLOCKS] * len(POINTS)


def test_by_hand() -> None:
    """A block makes 5 bytes for its backward and 2 for a moment; there its gradient has 3, freed by the next one."""

    def traced(depth: int) -> MemoryEvents:
        num_bytes, freed_at = [7], [1 + 2 * depth + 1]  # the input, until the loss is there
        forward_end = 1 + 2 * depth + 1
        for block in range(depth):
            num_bytes += [5, 2]
            freed_at += [forward_end + (depth - block), len(num_bytes)]
        num_bytes.append(4)  # the loss
        freed_at.append(forward_end + depth)
        for _ in range(depth):
            freed_at.append(len(num_bytes) + 2 if len(num_bytes) < forward_end + depth - 1 else forward_end + depth)
            num_bytes.append(3)
        training_end = len(num_bytes)
        num_bytes += [2] * depth
        freed_at += [training_end + depth] * depth
        return MemoryEvents(tuple(num_bytes), tuple(freed_at), forward_end, training_end)

    extension = Extension.of(traced(3), traced(4), traced(5))
    for depth in (3, 4, 5, 6, 11):
        assert extension.extend(traced(3), depth - 3) == traced(depth)
    doubled = replace(traced(3), num_bytes=tuple(2 * size for size in traced(3).num_bytes))
    assert extension.extend(doubled, 4) == replace(traced(7), num_bytes=tuple(2 * b for b in traced(7).num_bytes))
    with pytest.raises(NotRegular):
        Extension.of(traced(3), traced(4), traced(6))
    with pytest.raises(NotRegular):
        Extension.of(traced(3), traced(3), traced(3))
    with pytest.raises(NotRegular):
        extension.extend(replace(traced(3), others_freed=((1, 5),)), 2)
    with pytest.raises(NotRegular):
        extension.extend(replace(traced(3), num_bytes=(7, 0, *traced(3).num_bytes[2:])), 2)
    kept = list(traced(3).freed_at)
    kept[2] = len(kept)  # what was for a moment is kept to the end
    with pytest.raises(NotRegular):
        extension.extend(replace(traced(3), freed_at=tuple(kept)), 2)
