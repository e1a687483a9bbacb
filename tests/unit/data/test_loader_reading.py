"""A loader's pass can be read again: by whom it is shared out, what it repeats, and what it draws."""

import random
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, TensorDataset

from hf_accum.accumulation.batch_parts import num_rows
from hf_accum.data.loader_reading import LoaderReading, is_dispatched, is_shared_out, repeats_examples
from hf_accum.data.windows_of import windows_of
from hf_accum.errors import UserError

ROWS = TensorDataset(torch.arange(7))


@pytest.mark.parametrize(("num_examples", "even", "expected"), [(7, True, True), (8, True, False), (7, False, False)])
@pytest.mark.usefixtures("accelerator")
def test_a_prepared_loader_repeats_examples_where_ranks_would_have_fewer(
    num_examples: int, even: bool, expected: bool
) -> None:
    loader = DataLoader(TensorDataset(torch.arange(num_examples)), batch_size=2)
    shard = prepare_data_loader(loader, num_processes=2, process_index=1, even_batches=even)
    read = sum(len(rows) for (rows,) in shard)
    other = sum(
        len(rows) for (rows,) in prepare_data_loader(loader, num_processes=2, process_index=0, even_batches=even)
    )
    assert (read + other > num_examples) == expected  # what accelerate does
    assert repeats_examples(shard) == expected
    assert not repeats_examples(loader)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (num_rows, "a loader of the type function: .*; `num_rows` is a function: give what it makes"),
        (3, "a loader of the type int: has to be one that gives batches when it is iterated over, such as a DataL"),
        (None, "a loader of the type NoneType"),
    ],
)
def test_what_gives_no_batches_is_refused(loader: Any, message: str, accelerator: Accelerator) -> None:
    with pytest.raises(UserError, match=message):
        windows_of(accelerator, loader, batches_per_step=1)


def test_which_loaders_are_shared_out_already(accelerator: Accelerator) -> None:
    plain = DataLoader(ROWS)
    assert not is_shared_out(plain)
    assert not is_shared_out([torch.ones(1)])
    assert is_shared_out(accelerator.prepare(plain))
    assert is_shared_out(DataLoader(ROWS, sampler=DistributedSampler(ROWS, num_replicas=2, rank=0)))
    stream = datasets.Dataset.from_dict({"x": [1, 2, 3, 4]}).to_iterable_dataset(num_shards=2)
    assert not is_shared_out(DataLoader(stream))  # type: ignore[arg-type]
    from datasets.distributed import split_dataset_by_node

    assert is_shared_out(DataLoader(split_dataset_by_node(stream, rank=0, world_size=2)))  # type: ignore[arg-type]


@pytest.mark.usefixtures("accelerator")
def test_a_loader_that_rank_0_reads_for_all_is_known() -> None:
    loader = DataLoader(ROWS, batch_size=2)
    assert is_dispatched(
        prepare_data_loader(loader, num_processes=2, process_index=0, dispatch_batches=True, put_on_device=True)
    )
    assert not is_dispatched(prepare_data_loader(loader, num_processes=2, process_index=0))


class Noisy(Dataset[tuple[float, float, float]]):
    """Draws from all the common generators."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand())


def test_what_a_dataset_draws_is_the_same_in_the_same_pass_and_the_generators_stay() -> None:
    reading = LoaderReading(DataLoader(Noisy(), batch_size=2, shuffle=True), seed=0)
    passes = []
    for epoch in (0, 0, 1):
        torch.manual_seed(len(passes))
        random.seed(len(passes))
        before = torch.get_rng_state(), random.getstate()
        passes.append([[column.tolist() for column in batch] for batch in reading.batches(epoch)])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
    assert passes[0] == passes[1] != passes[2]
    drawn = [number for batch in passes[0] for column in batch for number in column]
    assert len(set(drawn)) == len(drawn)


class ByEpoch(Sampler[list[int]]):
    """Batches whose order is that of the epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[self.epoch, 3], [4]])


def test_a_sampler_of_batches_is_told_the_pass_too() -> None:
    reading = LoaderReading(DataLoader(ROWS, batch_sampler=ByEpoch()), seed=0)
    firsts = [next(reading.batches(epoch))[0].tolist()[0] for epoch in (2, 0)]
    assert firsts == [ROWS[2][0].tolist(), ROWS[0][0].tolist()]
