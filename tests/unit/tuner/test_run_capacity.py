"""The capacity of a run by its flags: checkpointing where it is needed, and all ranks together."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from thread_ranks import on_ranks
from tuning_cases import find, is_checkpointing, llama, peak_of_two, trace_llama_once
from workload_cases import CPU, peak_of_training

from hf_accum.accumulation.time_model import UNLEARNED, Costs
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import OutOfMemory, RankFailed
from hf_accum.tuner import run_capacity
from hf_accum.tuner.run_capacity import cutter_of, keep_costs, tuning_json


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "hf"))
    trace_llama_once(monkeypatch)
    return tmp_path / "hf" / "hf_accum" / "tuning"


def test_a_number_is_taken_as_it_is_and_nothing_is_probed(cache: Path) -> None:
    work = llama()
    (tuning,) = find(work, "auto", micro_batch_size=5)
    assert [tuning.capacity.num_examples(length) for length in (1, 512)] == [5, 5]
    assert (tuning.probes, is_checkpointing(work), cache.exists()) == ((), False, False)
    (tuning,) = find(work, "auto", micro_batch_size=5, gradient_checkpointing=True)
    assert (tuning.checkpointing, is_checkpointing(work)) == (True, True)


@pytest.mark.slow
def test_checkpointing_comes_on_by_itself_only_where_nothing_fits_without() -> None:
    kept = llama()
    enough = peak_of_training(kept, 1, 512)
    (tuning,) = find(kept, enough)
    assert (tuning.checkpointing, is_checkpointing(kept)) == (False, False)
    assert tuning.capacity.num_examples(512) == 1

    work = llama()
    (tuning,) = find(work, enough - 1)
    assert (tuning.checkpointing, is_checkpointing(work)) == (True, True)
    assert peak_of_training(work, tuning.capacity.num_examples(512), 512) <= enough - 1
    assert "with gradient checkpointing" in str(tuning)

    refused = llama()
    with pytest.raises(OutOfMemory, match="not even one example of 512 tokens"):
        find(refused, enough - 1, gradient_checkpointing=False)
    assert not is_checkpointing(refused)


def test_where_nothing_fits_the_message_says_what_would() -> None:
    seen: list[float] = []

    def advise(budget_bytes: float) -> list[str]:
        seen.append(budget_bytes)
        return ["`lora.rank 1`: 3 examples at once"]

    with pytest.raises(OutOfMemory, match=r"what would fit:\n  `lora.rank 1`: 3 examples at once"):
        find(llama(), 50_000, advise=advise)
    assert seen == [50_000]


def test_where_no_forward_fits_the_message_says_what_to_give() -> None:
    ways = "a smaller `max_length` needs less, and `micro_batch_size` 1 tries it all the same"
    with pytest.raises(OutOfMemory, match=f"not even one example of 512 tokens fits: .*; {ways}$"):
        find(replace(llama(), trains=False), 50_000)


def test_what_needs_less_than_training_goes_on_one_by_one_where_training_fits_nothing() -> None:
    work = llama()
    (tuning,) = find(work, 50_000, or_one=True)
    assert [tuning.capacity.num_examples(length) for length in (1, 512)] == [1, 1]
    assert not is_checkpointing(work)


def test_a_budget_beside_a_number_is_said_to_limit_nothing_on_a_cpu() -> None:
    (tuning,) = find(llama(), "1GiB", micro_batch_size=5)
    assert "`memory_budget` limits nothing on a CPU" in str(tuning)
    assert "memory_budget" not in str(find(llama(), "auto", micro_batch_size=5)[0])


def test_what_a_run_has_learned_of_times_is_kept_for_the_next(cache: Path) -> None:
    budget = 4 * peak_of_two()
    (tuning,) = find(llama(), budget)
    assert tuning.costs != UNLEARNED  # by the probes
    cutter = cutter_of(tuning, CPU)
    assert cutter.costs is not None
    cutter.costs.costs = Costs(1.0, 2.0, 3.0)
    cutter.costs.num_windows = 64
    (kept,) = keep_costs(tuning, cutter, OneRank())
    (again,) = find(llama(), budget)
    assert again.from_cache
    assert again.costs == kept.costs == Costs(1.0, 2.0, 3.0)
    assert again.settled
    assert tuning_json([kept])["costs"]["token"] == 2.0


def test_before_the_probes_it_is_said_what_comes_and_then_which_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        run_capacity, "told_if_long", lambda _, what, how_far: nullcontext(told.append((what, how_far)))
    )
    (tuning,) = find(llama(), 4 * peak_of_two())
    ((what, how_far),) = told
    assert what.startswith("trying which micro-batches fit, of at most ")
    last = tuning.probes[-1]
    assert how_far() == f"probe {len(tuning.probes)}: {last.num_examples} of {last.length} tokens"


def test_each_rank_has_its_own_capacity_and_its_share_of_the_window() -> None:
    works = [llama(lora=True) for _ in range(2)]
    one = peak_of_two(lora=True)
    budgets = [4 * one, 2 * one]

    outcomes: list[Any] = on_ranks(2, lambda ranks: find(works[ranks.index], budgets[ranks.index], ranks))
    assert str(outcomes[0]) == str(outcomes[1])  # each knows of the other
    alone = [find(work, budget)[0] for work, budget in zip(works, budgets, strict=True)]
    for of_rank, by_itself in zip(outcomes[0], alone, strict=True):
        assert of_rank.capacity.most == 8
        assert of_rank.capacity.num_examples(512) == min(8, by_itself.capacity.num_examples(512))
    assert len(tuning_json(outcomes[0])["ranks"]) == 2
    assert "ranks" not in tuning_json(alone[:1])


def test_a_rank_on_which_nothing_fits_ends_the_others() -> None:
    works = [llama(lora=True) for _ in range(2)]
    enough = 4 * peak_of_two(lora=True)
    outcomes: list[Any] = on_ranks(2, lambda ranks: find(works[ranks.index], (enough, 1000)[ranks.index], ranks))
    assert isinstance(outcomes[0], RankFailed)
    assert isinstance(outcomes[1], OutOfMemory)
    assert "rank 1 failed: OutOfMemory: not even one example" in str(outcomes[0])


def test_a_model_that_cannot_be_traced_gets_a_size_too() -> None:
    """Its forward asks for a value."""
    work = llama(lora=True)

    def loss(model: Any, batch: Any) -> torch.Tensor:
        total = work.summed_loss(model, batch)
        return total if total.item() > 0 else -total

    budget = peak_of_training(work, 3, 512)
    (tuning,) = find(replace(work, summed_loss=loss), budget)
    assert tuning.capacity.num_examples(512) == tuning.capacity.num_examples(8) == 3
    assert "cannot be traced" in str(tuning)


def test_layers_that_talk_in_the_forward_are_refused_on_several_ranks() -> None:
    """Before anything is measured."""
    work = llama()
    work.model.add_module("norm", torch.nn.SyncBatchNorm(8))
    find(work, "auto", micro_batch_size=5)
    outcomes = on_ranks(2, lambda ranks: find(work, "auto", ranks, micro_batch_size=5))
    assert all("layer norm is a SyncBatchNorm" in str(outcome) for outcome in outcomes)
