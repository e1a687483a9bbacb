"""A device that others fill, or that does not count, is spoken of before the long work."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_accum.device.free_memory import check_free_memory
from hf_accum.errors import UserError

CUDA = torch.device("cuda", 0)
GIB = 2**30


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of 12 GiB, of which `free` are left; 1 GiB is this process's own."""
    state = SimpleNamespace(free=10 * GIB, counts=True, limits=[])

    def counted(value: Any) -> Any:
        if not state.counts:
            raise RuntimeError("Allocator for mps is not a DeviceAllocator.")
        return value

    memory = SimpleNamespace(
        reset_peak_memory_stats=lambda device: counted(None),
        get_memory_info=lambda device: counted((state.free, 12 * GIB)),
        memory_reserved=lambda device: counted(GIB),
        empty_cache=lambda: counted(None),
    )
    module = SimpleNamespace(set_per_process_memory_fraction=state.limits.append)
    monkeypatch.setattr(torch.accelerator, "memory", memory)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return state


def test_a_card_of_one_s_own_is_not_spoken_of(card: Any) -> None:
    asked: list[tuple[Any, str]] = [("auto", "auto"), (4, "auto"), ("auto", "11GiB"), (4, "5GiB")]
    for size, budget in asked:
        assert check_free_memory(CUDA, size, budget, GIB) is None
    assert check_free_memory(CUDA, "auto", "auto", 13 * GIB) is None  # said later, with what would fit
    assert card.limits == []  # loading is not limited yet


def test_a_card_of_which_others_have_more_than_half_is_said_with_the_way_out(card: Any) -> None:
    card.free = 5 * GIB
    assert check_free_memory(CUDA, "auto", "auto", GIB) is None  # 6 of 12, with the process's own
    card.free -= 1
    for size in ("auto", 4):
        said = check_free_memory(CUDA, size, "auto", GIB)
        assert said is not None
        assert said.startswith("cuda:0 has 12.00 GiB, of which 6.00 GiB are free for this run")
        assert "is not known here" in said
        assert "CUDA_VISIBLE_DEVICES" in said
    assert check_free_memory(CUDA, "auto", "2GiB", GIB) is None  # as asked for


def test_a_budget_that_others_have_is_refused_with_what_is_free(card: Any) -> None:
    card.free = 5 * GIB
    assert check_free_memory(CUDA, "auto", 6 * GIB, GIB) is None
    for size in ("auto", 4):
        with pytest.raises(UserError) as refused:
            check_free_memory(CUDA, size, "8GiB", GIB)
        said = str(refused.value)
        assert said.startswith("`memory_budget` 8.00 GiB: cuda:0 has 12.00 GiB, of which 6.00 GiB are free")
        assert "what has the rest is not known here" in said
        assert "give less, or auto, or end that process, or choose another device" in said


def test_weights_for_which_others_have_left_no_room_are_refused(card: Any) -> None:
    card.free = 2 * GIB
    with pytest.raises(UserError, match=r"alone take 4.00 GiB, and cuda:0 has 12.00 GiB, of which 3.00 GiB are free"):
        check_free_memory(CUDA, 1, "auto", 4 * GIB)


def test_a_device_that_does_not_count_needs_a_number_as_micro_batch(card: Any) -> None:
    card.counts = False
    mps = torch.device("mps")
    assert check_free_memory(mps, 4, "auto", GIB) is None
    asked: list[tuple[Any, str]] = [("auto", "auto"), (4, "2GiB")]
    for size, budget in asked:
        with pytest.raises(UserError, match=r"does not count memory on mps .*give a number as `micro_batch_size`"):
            check_free_memory(mps, size, budget, GIB)


def test_a_cpu_is_not_asked(card: Any) -> None:
    card.counts = False
    assert check_free_memory(torch.device("cpu"), "auto", "auto", 2**60) is None
