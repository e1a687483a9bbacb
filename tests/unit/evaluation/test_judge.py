"""Each example once, in the order of the files, on any number of ranks; the worst ones are those of a plain sort."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import run_ranks
from torch import nn

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example, Origin, inputs_of
from hf_accum.accumulation.losses import SquaredError
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import Source
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.evaluation import judge as module
from hf_accum.evaluation.judge import Judged, Predicted, judge


def source_of(sizes: Sequence[int]) -> Source:
    values = iter(range(sum(sizes)))
    shards = [[{"x": next(values)} for _ in range(size)] for size in sizes]
    return Source(tuple(map(str, range(len(sizes)))), lambda s, start: iter(list(enumerate(shards[s]))[start:]), {})


def encode(rows: Sequence[tuple[str, Any]]) -> list[Example]:
    return [Example(name, 1 + row["x"] % 3, 1.0, row, origin=Origin(row, row["x"] // 4)) for name, row in rows]


def predict(model: nn.Module, batch: Any) -> Predicted:
    outputs = (batch * 7) % 11
    return Predicted(((outputs - 3) ** 2).sum(), outputs, torch.full_like(outputs, 3.0))


def judged_on(ranks: Ranks, sizes: Sequence[int], split: Any) -> Judged:
    stream = WindowStream(
        source_of(sizes), lambda row: row, encode, ranks=ranks, effective_batch_size=4, seed=0, split=split
    )
    return judge(
        nn.Linear(1, 1),
        stream,
        lambda examples, _: torch.tensor([float(example.features["x"]) for example in examples]),
        predict,
        ranks=ranks,
        cutter=Cutter(WorkingCapacity(Capacity(3))),
        objective=SquaredError(),
        show=lambda example: {"x": example.origin.row["x"] if example.origin else None},
    )


@settings(max_examples=10)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=3).filter(any),
    num_ranks=st.integers(1, 3),
    split=st.sampled_from(("examples", "shards")),
    most=st.integers(1, 20),
)
def test_all_ranks_have_all_examples_once(sizes: list[int], num_ranks: int, split: Any, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NUM_WORST", most)
        everyone = run_ranks(num_ranks, lambda ranks: judged_on(ranks, sizes, split))
    number = sum(sizes)
    x = np.arange(number)
    losses = ((x * 7) % 11 - 3.0) ** 2
    for found in everyone:
        assert found.ids == [f"{shard}:{row}" for shard, size in enumerate(sizes) for row in range(size)]
        assert found.outputs.tolist() == ((x * 7) % 11).tolist()
        assert found.groups.tolist() == [int(group) for group in np.unique(x // 4, return_inverse=True)[1]]
        assert found.losses is not None
        assert found.losses.tolist() == losses.tolist()
        assert found.loss == pytest.approx(losses.mean())
        assert [losses[one.index] for one in found.worst] == sorted(losses, reverse=True)[:most]
        assert all(one.shown == {"x": one.index} for one in found.worst)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_examples_are_judged_by_the_outputs_of_all_their_parts(num_ranks: int) -> None:
    """An example of the number x has x % 3 + 1 parts of the numbers x, x + 1, ...: what is predicted is their sum."""

    def in_parts(rows: Sequence[tuple[str, Any]]) -> list[Example]:
        return [replace(one, parts=parts_of(one) if one.features["x"] % 3 else ()) for one in encode(rows)]

    def parts_of(one: Example) -> tuple[Example, ...]:
        x = one.features["x"]
        return tuple(Example(f"{one.id}:{n}", 1 + n, 1.0, {"x": x + n}) for n in range(x % 3 + 1))

    def whole(examples: Sequence[Example], parts: Mapping[str, torch.Tensor]) -> Predicted:
        sums = torch.stack([sum(parts[part.id] for part in inputs_of([one])) for one in examples])  # type: ignore[arg-type]
        return Predicted(sums.sum(), sums, torch.zeros_like(sums))

    def on(ranks: Ranks) -> Judged:
        stream = WindowStream(
            source_of([7, 4]), lambda row: row, in_parts, ranks=ranks, effective_batch_size=4, seed=0
        )
        return judge(
            nn.Linear(1, 1),
            stream,
            lambda examples, _: torch.tensor([float(example.features["x"]) for example in examples]),
            lambda model, batch: Predicted(batch.sum(), batch, batch),
            ranks=ranks,
            cutter=Cutter(WorkingCapacity(Capacity(2))),
            objective=SquaredError(),
            show=lambda example: {"parts": len(example.parts)},
            whole=whole,
        )

    expected = [float(sum(x + n for n in range(x % 3 + 1))) for x in range(11)]
    for found in run_ranks(num_ranks, on):
        assert found.outputs.tolist() == expected
        assert found.loss == pytest.approx(sum(expected) / 11)
        assert found.losses is not None
        assert found.losses.tolist() == [value**2 for value in expected]
        assert [worst.shown["parts"] for worst in found.worst] == [
            [0, 2, 3][worst.index % 3] for worst in found.worst
        ]
