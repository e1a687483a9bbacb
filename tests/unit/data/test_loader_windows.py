"""Windows over anybody's batches: which examples they have, on any number of ranks, and how a pass goes on."""

import gc
import random
import weakref
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import ThreadRanks, on_ranks
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from hf_accum.accumulation.accumulate import accumulate
from hf_accum.accumulation.batch_parts import num_rows, row_length
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.data.loader_windows import LoaderWindows
from hf_accum.data.windows_of import windows_of
from hf_accum.distributed.ranks import OneRank, Ranks
from hf_accum.errors import UserError

CPU = torch.device("cpu")


def make(loader: Any, ranks: Ranks | None = None, **how: Any) -> LoaderWindows:
    how = {"batches_per_step": None, "examples_per_step": None, "weight": num_rows, "length": row_length, **how}
    return LoaderWindows(loader, ranks or OneRank(), CPU, **{"seed": 0, **how})


def batches_of(sizes: list[int]) -> list[Tensor]:
    """Rows that are numbered."""
    return list(torch.arange(sum(sizes)).view(-1, 1).split(sizes))


def joined(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def run(window: WindowExecution, capacity: Any = 10**6) -> list[list[int]]:
    """The rows of each micro-batch, which go through."""
    pieces = []
    for micro_batch in window.micro_batches(capacity):
        if not micro_batch.is_dummy:
            pieces.append(micro_batch.batch.flatten().tolist())
        micro_batch.is_through = True
    return pieces


SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=9)


@given(SIZES, st.integers(1, 4), st.integers(1, 8))
def test_a_window_has_so_many_batches_whole_or_in_equal_parts(sizes: list[int], per_step: int, most: int) -> None:
    batches = batches_of(sizes)
    windows = list(make(batches, batches_per_step=per_step))
    assert [w.window.num_examples for w in windows] == [
        sum(sizes[at : at + per_step]) for at in range(0, len(sizes), per_step)
    ]
    pieces = [piece for window in windows for piece in run(window, most)]
    assert joined(pieces) == list(range(sum(sizes)))
    assert max(map(len, pieces)) <= most
    assert len(pieces) == sum(-(-size // most) for size in sizes)


@given(SIZES, st.integers(3, 12), st.integers(1, 3))
def test_a_window_of_so_many_examples_is_the_same_on_any_number_of_ranks(
    sizes: list[int], per_step: int, count: int
) -> None:
    total = sum(sizes)

    def rows(ranks: ThreadRanks) -> list[tuple[int, list[int]]]:
        windows = make(batches_of(sizes), ranks, examples_per_step=per_step)
        return [(w.window.num_examples, joined(run(w))) for w in windows]

    of_ranks: list[Any] = on_ranks(count, rows)
    for number, parts in enumerate(zip(*of_ranks, strict=True)):
        expected = list(range(number * per_step, min((number + 1) * per_step, total)))
        assert [num for num, _ in parts] == [len(expected)] * count
        assert joined((rows for _, rows in parts)) == expected
        assert max(len(rows) for _, rows in parts) - min(len(rows) for _, rows in parts) <= 1


@given(SIZES, st.integers(1, 3), st.integers(2, 3))
def test_batches_are_dealt_to_the_ranks_each_once(sizes: list[int], per_step: int, count: int) -> None:
    def rows(ranks: ThreadRanks) -> list[list[int]]:
        return [joined(run(w)) for w in make(batches_of(sizes), ranks, batches_per_step=per_step)]

    of_ranks: list[Any] = on_ranks(count, rows)
    assert sorted(row for rank in of_ranks for window in rank for row in window) == list(range(sum(sizes)))
    assert len({len(rank) for rank in of_ranks}) == 1
    assert len(of_ranks[0]) == -(-len(sizes) // (per_step * count))


class Own(list[Tensor]):
    """Of this rank alone, as a prepared loader is."""

    gradient_state = None


def test_ranks_with_fewer_batches_of_their_own_go_on_with_none() -> None:
    def rows(ranks: ThreadRanks) -> list[tuple[float, list[int]]]:
        own = Own(batches_of([2, 1, 2] if ranks.index else [3]))
        return [(w.window.num_items, joined(run(w))) for w in make(own, ranks, batches_per_step=1)]

    first, second = on_ranks(2, rows)
    assert first == [(5, [0, 1, 2]), (1, []), (2, [])]
    assert second == [(5, [0, 1]), (1, [2]), (2, [3, 4])]


class Fresh:
    """Makes its batches anew in each pass, and knows which are alive."""

    def __init__(self) -> None:
        self.alive: list[Any] = []

    def __iter__(self) -> Iterator[Tensor]:
        for batch in batches_of([4, 4, 4]):
            fresh = batch.clone()
            self.alive.append(weakref.ref(fresh))
            yield fresh


def test_no_batch_is_kept_beyond_its_window() -> None:
    """Not the first one either, of which ranks without examples have a row."""
    loader = Fresh()
    for window in make(loader, batches_per_step=1):
        run(window)
        assert sum(batch() is not None for batch in loader.alive) <= 2
        del window


def test_a_rank_without_any_batch_is_said() -> None:
    def rows(ranks: ThreadRanks) -> list[Any]:
        return list(make(Own(batches_of([2]) if ranks.index else []), ranks, batches_per_step=1))

    failed = on_ranks(2, rows)
    assert isinstance(failed[0], UserError)
    assert "rank 0 has no batch at all" in str(failed[0])
    assert "rank 0 has no batch at all" in str(failed[1])


def test_ranks_that_read_different_batches_are_refused() -> None:
    def rows(ranks: ThreadRanks) -> list[Any]:
        batches = batches_of([2, 2, 2, 2])
        return list(make(batches[::-1] if ranks.index else batches, ranks, batches_per_step=1))

    for failed in on_ranks(2, rows):
        assert isinstance(failed, UserError)
        assert "the ranks read different batches at step 1" in str(failed)


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_batch_that_is_none_does_not_end_the_pass_unseen(nothing: Any) -> None:
    first, last = batches_of([1, 1])
    with pytest.raises(UserError, match="without tensors"):
        list(make([first, nothing, last], batches_per_step=1))


@pytest.mark.parametrize("is_run", [True, False])
def test_who_leaves_tells_the_others_only_where_they_wait_for_it(is_run: bool) -> None:
    """Behind a window, that is: within one they wait for its gradient, and an error here would never be seen."""

    def rows(ranks: ThreadRanks) -> int:
        windows = iter(make(batches_of([1, 1, 1, 1]), ranks, batches_per_step=1))
        window = next(windows)
        if is_run:
            run(window)
        before = ranks.num_exchanges
        windows.close()  # type: ignore[attr-defined] (a generator)
        return ranks.num_exchanges - before

    assert on_ranks(2, rows) == [is_run, is_run]


def test_the_weight_is_that_of_the_parts_too() -> None:
    windows = make(batches_of([4, 4]), examples_per_step=3, weight=lambda rows: rows.float().sum())
    assert [w.window.num_items for w in windows] == [0 + 1 + 2, 3 + 4 + 5, 6 + 7]


def test_a_window_in_which_nothing_counts_is_left_out_and_counted() -> None:
    windows = make(batches_of([1, 1, 1]), batches_per_step=1, weight=lambda rows: float(rows[0] != 1))
    assert [run(w) for w in windows] == [[[0]], [[2]]]
    assert windows.num_weightless_windows == 1


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (-1.0, "-1.0"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (None, "None: has to be a number from 0 on, all its items together; the function has to return it"),
        ("many", "'many': has to be a number"),
        (torch.ones(3), r"of the shape \(3,\): has to be a number from 0 on; add it up: `.sum\(\)`"),
        (torch.ones(0), r"of the shape \(0,\)"),
    ],
    ids=str,
)
def test_a_weight_that_is_none_is_refused(weight: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"the weight of batch 1 is {said}"):
        list(make(batches_of([1]), batches_per_step=1, weight=lambda _: weight))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "one of the two has to be given"),
        ({"batches_per_step": 1, "examples_per_step": 1}, "one of the two"),
        ({"batches_per_step": 0}, "`batches_per_step` 0: has to be at least 1"),
        ({"examples_per_step": -3}, "`examples_per_step` -3: has to be at least 1"),
    ],
)
def test_a_size_that_is_none_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(batches_of([1]), **how)


def test_an_iterator_and_an_empty_loader_are_refused() -> None:
    with pytest.raises(UserError, match="loader of the type list_iterator: has to be one that can be read again"):
        make(iter(batches_of([1])), batches_per_step=1)
    with pytest.raises(UserError, match="no batch"):
        list(make([], batches_per_step=1))


class Stream(IterableDataset[Tensor]):
    """Numbered rows, in an order and with a noise that are drawn."""

    def __iter__(self) -> Iterator[Tensor]:
        for row in torch.randperm(11):
            yield torch.tensor([int(row), int(torch.randint(1000, ()))])


def shuffled(**how: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(11).view(-1, 1)), batch_size=2, shuffle=True, **how)


def with_generator() -> DataLoader[Any]:
    return shuffled(generator=torch.Generator().manual_seed(5))


def prepared() -> Any:
    return Accelerator(cpu=True).prepare(shuffled())


def prepared_seedable() -> Any:
    how = DataLoaderConfiguration(use_seedable_sampler=True)
    return Accelerator(cpu=True, dataloader_config=how).prepare(shuffled())


LOADERS = {
    "list": lambda: batches_of([3, 1, 4, 2, 1]),
    "shuffled": shuffled,
    "generator": with_generator,
    "stream": lambda: DataLoader(Stream(), batch_size=2),
    "prepared": prepared,
    "prepared, seedable": prepared_seedable,
}


def seen(windows: LoaderWindows, num_passes: int, stop_at: int | None = None) -> list[Any]:
    """The batches of each window; with a draw in each, as a training has."""
    found: list[Any] = []
    for _ in range(num_passes):
        for window in windows:
            torch.rand(windows.step + 1)
            found.append([torch.as_tensor(leaf).tolist() for leaf in leaves_of(window)])
            if windows.step == stop_at:
                return found
    return found


def leaves_of(window: WindowExecution) -> list[Any]:
    return [leaf for batch in through(window) for leaf in tree_leaves(batch)]


def through(window: WindowExecution) -> Iterator[Any]:
    for micro_batch in window.micro_batches(2):
        yield micro_batch.batch
        micro_batch.is_through = True


@pytest.mark.parametrize("how", [{"batches_per_step": 2}, {"examples_per_step": 3}], ids=["batches", "examples"])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_pass_goes_on_where_it_was_left_with_what_came_there(
    kind: str, how: dict[str, Any], accelerator: Accelerator
) -> None:
    torch.manual_seed(0)
    whole_windows = make(LOADERS[kind](), **how)
    torch.manual_seed(1)
    whole = seen(whole_windows, 3)
    assert whole_windows.epoch == 3
    if kind != "list":
        assert whole[0] != whole[len(whole) // 3]  # another order in each pass
    for stop_at in range(1, len(whole)):
        torch.manual_seed(0)
        first = make(LOADERS[kind](), **how)
        before = seen(first, 3, stop_at)
        state = first.state_dict()
        torch.manual_seed(7)
        second = make(LOADERS[kind](), **how)
        second.load_state_dict(state)
        assert second.step == stop_at
        assert before + seen(second, 3 - second.epoch) == whole


class OwnOrder(Sampler[int]):
    """Of a generator that nobody knows."""

    def __init__(self) -> None:
        self.random = random.Random(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.random.sample(range(11), 11))


def test_a_loader_that_gives_other_batches_when_it_is_read_again_is_warned_of() -> None:
    dataset = TensorDataset(torch.arange(11).view(-1, 1))

    def state(sampler: OwnOrder) -> tuple[LoaderWindows, Any]:
        windows = make(DataLoader(dataset, batch_size=2, sampler=sampler), batches_per_step=1)
        for window in windows:
            for _ in leaves_of(window):
                pass
            break
        return windows, windows.state_dict()

    windows, before = state(OwnOrder())
    with pytest.warns(UserWarning, match="the first 1 windows of this pass are not those that were left out"):
        next(iter(windows))
    resumed = make(DataLoader(dataset, batch_size=2, sampler=OwnOrder()), batches_per_step=1)
    resumed.load_state_dict(before)
    next(iter(resumed))  # its first pass is the same


def test_a_window_that_did_not_go_through_comes_again() -> None:
    windows = make(batches_of([1, 1, 1]), batches_per_step=1)
    for window in windows:
        if windows.step == 1:
            break
        run(window)
    assert windows.step == 1
    assert [run(window) for window in windows] == [[[1]], [[2]]]
    assert (windows.epoch, windows.step) == (1, 3)


@pytest.mark.parametrize(
    ("how", "message"),
    [({"batches_per_step": 2}, "`batches_per_step` 1, and they have 2"), ({"seed": 4}, "`seed` 0, and they have 4")],
)
def test_the_state_of_other_windows_is_refused(how: dict[str, Any], message: str) -> None:
    state = make(batches_of([1]), batches_per_step=1).state_dict()
    with pytest.raises(UserError, match=message):
        make(batches_of([1]), **{"batches_per_step": 1, **how}).load_state_dict(state)


def test_a_loader_with_other_samplers_is_refused() -> None:
    state = make(with_generator(), batches_per_step=1).state_dict()
    with pytest.raises(UserError, match="other samplers"):
        make(shuffled(), batches_per_step=1).load_state_dict(state)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(1, 1).double()

    def summed_loss(self, rows: Tensor) -> Tensor:
        return self.inner(rows.double()).pow(2).sum()


@given(SIZES, st.integers(1, 4), st.integers(1, 8))
def test_the_gradient_is_that_of_the_window_in_one_batch(sizes: list[int], per_step: int, most: int) -> None:
    accelerator, model = Accelerator(cpu=True), Linear()
    for window in windows_of(accelerator, batches_of(sizes), batches_per_step=per_step):
        for micro_batch in window.micro_batches(most):
            with accumulate(accelerator, model, micro_batch):
                accelerator.backward(micro_batch.scaled(model.summed_loss(micro_batch.batch)))
        start = sum(sizes[: (window.window.step - 1) * per_step])
        rows = torch.arange(start, start + window.window.num_examples).view(-1, 1)
        expected = torch.autograd.grad(model.summed_loss(rows) / len(rows), list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradient, rtol=1e-12, atol=1e-14)
        model.zero_grad()


def test_what_a_capacity_learns_is_for_the_windows_after_it() -> None:
    """A number as capacity too; and it is in the state."""
    accelerator, model = Accelerator(cpu=True), Linear()
    replays = []
    for window in (windows := windows_of(accelerator, batches_of([8, 8, 8]), batches_per_step=1)):
        for micro_batch in window.micro_batches(8):
            with accumulate(accelerator, model, micro_batch):
                if len(micro_batch.examples) > 4:
                    raise torch.OutOfMemoryError("made up")
                accelerator.backward(micro_batch.scaled(model.summed_loss(micro_batch.batch)))
        replays.append(window.num_oom_replays)
        model.zero_grad()
    assert replays == [1, 0, 0]
    resumed = make(batches_of([8, 8, 8]), batches_per_step=1)
    resumed.load_state_dict(windows.state_dict())
    assert [len(piece) for window in resumed for piece in run(window, 8)] == [4] * 6


def test_a_prepared_loader_that_repeats_examples_is_warned_of() -> None:
    plain = DataLoader(TensorDataset(torch.arange(7)), batch_size=2)
    loader = prepare_data_loader(plain, num_processes=2, process_index=0)
    with pytest.warns(UserWarning, match="the prepared loader repeats examples at the end of a pass"):
        on_ranks(2, lambda ranks: make(loader, ranks, batches_per_step=1))


def test_windows_made_anew_of_the_same_loader_begin_its_next_pass(accelerator: Accelerator) -> None:
    """As in a loop over epochs that makes them each time: other orders, and other random numbers."""
    loader, whole = shuffled(), make(shuffled(), batches_per_step=2)
    passes, seeds = [], []
    for _ in range(3):
        windows = windows_of(accelerator, loader, batches_per_step=2)
        passes.append([[leaf.tolist() for leaf in leaves_of(window)] for window in windows])
        seeds += [windows.step]
    assert passes == [[[leaf.tolist() for leaf in leaves_of(window)] for window in whole] for _ in range(3)]
    assert seeds == [3, 6, 9]
    other = windows_of(accelerator, shuffled(), batches_per_step=2)
    assert (other.epoch, other.step) == (0, 0)


def test_a_loader_that_is_made_in_each_epoch_has_another_order_each_time(accelerator: Accelerator) -> None:
    """And other random numbers in the forward; a state has them, whichever loader it goes on with. Few are held."""
    orders, seeds, held = [], [], []
    windows = windows_of(accelerator, shuffled(), batches_per_step=1)
    for number in range(12):
        windows = windows if number == 0 else windows_of(accelerator, shuffled(), batches_per_step=1)
        held.append(weakref.ref(windows))
        of_pass = list(windows)
        orders.append(str([[leaf.tolist() for leaf in leaves_of(window)] for window in of_pass]))
        seeds.append(of_pass[0].window.seed)
    assert len(set(orders)) == len(set(seeds)) == 12
    state = windows.state_dict() | {"place": {"epoch": 0, "num_taken": 0, "step": 0, "passed": 0}}
    windows = make(shuffled(), batches_per_step=1)
    windows.load_state_dict(state)
    of_pass = list(windows)
    assert str([[leaf.tolist() for leaf in leaves_of(window)] for window in of_pass]) == orders[-1]
    assert of_pass[0].window.seed == seeds[-1]
    del of_pass
    gc.collect()
    assert sum(windows() is not None for windows in held) <= 8
