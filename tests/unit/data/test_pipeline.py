"""Windows made ready ahead: the same windows, with their batches, within bounds; no rank is left waiting."""

import threading
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from dry_runs import dry_run
from numbered_rows import encode, make_stream, prepare, source_of
from thread_ranks import ThreadRanks, on_ranks, run_ranks
from transformers import BatchEncoding

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.time_model import WorkingCosts
from hf_accum.data.pipeline import Pipeline
from hf_accum.data.source import BadRow, Row
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import OneRank, Ranks
from hf_accum.errors import RankFailed, UserError

CPU = torch.device("cpu")


def collate(examples: Sequence[Example], length: int) -> tuple[list[str], int, torch.Tensor]:
    return [e.id for e in examples], length, torch.tensor([e.length for e in examples])


def make_pipeline(
    ranks: Ranks | None = None, sizes: Sequence[int] = (23, 9), batch: int = 7, most: int = 3, **how: Any
) -> Pipeline[Any]:
    stream = make_stream(source_of(sizes), ranks or OneRank(), batch, **how)
    return Pipeline(stream, Cutter(WorkingCapacity(Capacity(most)), WorkingCosts()), collate, CPU)


def check_batches(pipeline: Pipeline[Any], window: Any) -> None:
    for micro_batch in dry_run(window, pipeline.cutter):
        ids, length, lengths = micro_batch.batch
        assert ids == [e.id for e in micro_batch.examples]
        assert length == micro_batch.length == max(e.length for e in micro_batch.examples)
        assert lengths.tolist() == [e.length for e in micro_batch.examples]


@pytest.mark.parametrize("split", ["examples", "shards"])
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_windows_are_those_of_the_stream_and_micro_batches_have_their_batches(num_ranks: int, split: str) -> None:
    def work(ranks: ThreadRanks) -> list[tuple[int, str, list[str]]]:
        plain = [
            (w.step, w.digest, [e.id for e in w.examples])
            for w in make_stream(source_of((23, 9)), ranks, 7, split=split)
        ]
        pipeline = make_pipeline(ranks, split=split)
        seen = []
        for window in pipeline:
            expected = len(pipeline.cutter.cut(window.window.examples))
            check_batches(pipeline, window)
            assert window.num_micro_batches == expected
            seen.append((window.window.step, window.window.digest, [e.id for e in window.window.examples]))
        assert seen == plain
        return seen

    outcomes = run_ranks(num_ranks, work)
    assert sorted(i for of_rank in outcomes for _, _, ids in of_rank for i in ids) == sorted(
        f"{shard}:{row}" for shard, size in enumerate((23, 9)) for row in range(size)
    )


def test_a_window_whose_cut_has_changed_is_cut_anew() -> None:
    pipeline = make_pipeline(sizes=(60,), batch=20, most=5)
    for window in pipeline:
        if window.window.step == 1:
            pipeline.cutter.capacity.out_of_memory(2, 1)  # made ahead by now, or being made
            time.sleep(0.2)
        expected = [[e.id for e in piece] for piece in pipeline.cutter.cut(window.window.examples)]
        found = [micro_batch.batch[0] for micro_batch in dry_run(window, pipeline.cutter)]
        assert found == expected
        assert all(len(ids) == 1 for ids in found)


def test_windows_that_are_kept_have_their_own_batches() -> None:
    """Also where somebody looks one window ahead, or takes all of them first."""
    for window in list(make_pipeline(sizes=(60,), batch=20, most=5)):
        cutter = make_pipeline().cutter
        for micro_batch in dry_run(window, cutter):
            ids, _, _ = micro_batch.batch
            assert ids == [e.id for e in micro_batch.examples]
    pipeline = make_pipeline(sizes=(60,), batch=20, most=5)
    windows = iter(pipeline)
    first, second = next(windows), next(windows)
    for window in (first, second):
        check_batches(pipeline, window)


def test_another_cutter_than_the_pipeline_s_is_heeded() -> None:
    for window in make_pipeline(sizes=(60,), batch=20, most=5):
        sizes = [len(micro_batch.batch[0]) for micro_batch in dry_run(window, 2)]
        assert max(sizes) == 2


def test_a_tokenizer_s_mapping_of_tensors_comes_as_a_dictionary() -> None:
    def collate_as_tokenizers(examples: Sequence[Example], length: int) -> Any:
        return BatchEncoding({"input_ids": torch.zeros(len(examples), length)}), [torch.zeros(2)]

    pipeline = make_pipeline()
    pipeline.collate = collate_as_tokenizers
    pipeline.device = torch.device("meta")
    for window in pipeline:
        for micro_batch in dry_run(window, pipeline.cutter):
            inputs, (rest,) = micro_batch.batch
            assert type(inputs) is dict
            assert inputs["input_ids"].device.type == rest.device.type == "meta"


def test_a_window_that_starts_anew_gets_new_batches() -> None:
    pipeline = make_pipeline(sizes=(40,), batch=20, most=8)
    for window in pipeline:
        failed = False
        for micro_batch in dry_run(window, pipeline.cutter):
            assert micro_batch.batch[0] == [e.id for e in micro_batch.examples]
            if window.window.step == 1 and micro_batch.index == 1 and not failed:
                failed = True
                micro_batch.out_of_memory = "made up"
        assert window.num_oom_replays == (window.window.step == 1)


def test_no_more_than_a_few_micro_batches_are_made_ahead() -> None:
    made: list[int] = []

    def count(examples: Sequence[Example], length: int) -> int:
        made.append(len(examples))
        return 0

    stream = make_stream(source_of((400,)), OneRank(), 100)
    pipeline = Pipeline(stream, Cutter(WorkingCapacity(Capacity(1))), count, CPU, num_batches=4)
    windows = iter(pipeline)
    next(windows)
    time.sleep(0.5)
    assert 3 <= len(made) <= 5  # and one in the making
    windows.close()  # type: ignore[attr-defined]
    assert not any(thread.name == "hf-accum-prefetch" for thread in threading.enumerate())


def test_what_was_left_out_is_counted_up_to_the_window_that_is_used() -> None:
    """And not what has been read ahead of it."""
    bad = frozenset(f"0:{row}" for row in (3, 11, 39))
    stream = WindowStream(
        source_of((40,), bad),
        prepare,
        encode,
        ranks=OneRank(),
        effective_batch_size=10,
        seed=0,
        shuffle_block_size=1,
        on_bad_row="skip",
    )
    pipeline = Pipeline(stream, Cutter(WorkingCapacity(Capacity(2))), collate, CPU)
    counted = [(pipeline.counts.num_examples, pipeline.bad_rows().total()) for _ in pipeline]
    assert counted == [(10, 1), (20, 2), (30, 2), (37, 2)]  # one comes behind the last window
    assert (pipeline.counts.num_examples, pipeline.bad_rows().total()) == (37, 3)


@pytest.mark.parametrize("split", ["examples", "shards"])
def test_ranks_that_all_stop_early_do_not_wait_for_each_other(split: str) -> None:
    """However far ahead of each other they have read."""

    def work(ranks: ThreadRanks) -> int:
        pipeline = make_pipeline(ranks, sizes=(300, 100), batch=9, split=split)
        steps = 0
        for window in islice(pipeline, 5):
            check_batches(pipeline, window)
            time.sleep(0.02 * ranks.index)
            steps = window.window.step
        return steps

    started = time.perf_counter()
    outcomes = run_ranks(3, work)
    assert outcomes == [5, 5, 5]
    assert time.perf_counter() - started < 20  # not until a thread is given up
    assert not any(thread.name == "hf-accum-prefetch" for thread in threading.enumerate())


def test_a_rank_that_leaves_ends_the_others() -> None:
    def work(ranks: ThreadRanks) -> int:
        pipeline = make_pipeline(ranks, sizes=(300,), batch=9)
        for window in pipeline:
            if ranks.index == 1 and window.window.step == 3:
                raise OSError("made up")
        return 0

    first, second = on_ranks(2, work)
    assert isinstance(first, RankFailed)
    assert "rank 1 has stopped reading" in str(first)
    assert isinstance(second, OSError)


@pytest.mark.parametrize("keeps_failure", [False, True])
def test_a_bad_row_is_raised_where_the_windows_are_used_or_kept_on_request(keeps_failure: bool) -> None:
    def bad(row: Row) -> str:
        if row["value"] == "0:15":
            raise BadRow("value", "made up")
        return prepare(row)

    stream = WindowStream(
        source_of((40,)), bad, encode, ranks=OneRank(), effective_batch_size=10, seed=0, shuffle_block_size=1
    )
    pipeline = Pipeline(stream, Cutter(WorkingCapacity(Capacity(2))), collate, CPU, keeps_failure=keeps_failure)
    seen: list[int] = []

    def use() -> None:
        for window in pipeline:
            check_batches(pipeline, window)
            seen.append(window.window.step)
        assert pipeline.failure is not None
        raise pipeline.failure

    with pytest.raises(ValueError, match=r"row 16.*made up"):
        use()
    assert seen == [1]


def test_the_time_waited_for_data_is_the_window_s() -> None:
    def slow(examples: Sequence[Example], length: int) -> int:
        time.sleep(0.05)
        return 0

    stream = make_stream(source_of((20,)), OneRank(), 10)
    pipeline = Pipeline(stream, Cutter(WorkingCapacity(Capacity(2))), slow, CPU)
    for window in pipeline:
        assert len(list(dry_run(window, pipeline.cutter))) == 5
        assert 0.1 < window.seconds_waited < 2


def test_a_state_is_not_loaded_into_a_loop_that_runs() -> None:
    """Which would go on with the windows of before: the weights would be rolled back, the data not."""
    pipeline = make_pipeline(sizes=(40,), batch=8)
    windows = iter(pipeline)
    list(dry_run(next(windows), pipeline.cutter))
    state = pipeline.state_dict()
    with pytest.raises(UserError, match="cannot be loaded while they are iterated"):
        pipeline.load_state_dict(state)
    windows.close()  # type: ignore[attr-defined]
    pipeline.load_state_dict(state)
    assert [window.window.step for window in pipeline] == [2, 3, 4, 5]


def test_a_number_is_the_most_examples_of_a_forward() -> None:
    pipeline = Pipeline(make_stream(source_of((23,)), OneRank(), 10), 4, lambda examples, length: len(examples), CPU)
    sizes = [[m.batch for m in dry_run(window, pipeline.cutter)] for window in pipeline]
    assert [(max(of_window), sum(of_window)) for of_window in sizes] == [(4, 10), (4, 10), (3, 3)]
