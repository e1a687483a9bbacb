"""An accelerator's memory: asked for in each backend's own way, with fakes of them."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from hf_accum.device import accelerator, memory
from hf_accum.device.accelerator import begin_counting, memory_info, reserved_and_retries
from hf_accum.device.memory import open_memory, peak_memory_bytes
from hf_accum.device.out_of_memory import empty_cache


class FakeBackend:
    """torch.accelerator.memory and a device's module, as on MPS."""

    def __init__(self, *, counts: bool, says_free: bool) -> None:
        self.counts, self.says_free = counts, says_free

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        if not self.counts:
            raise RuntimeError("Allocator for mps is not a DeviceAllocator.")

    def get_memory_info(self, device: torch.device) -> tuple[int, int]:
        if not self.says_free:
            raise RuntimeError("getMemoryInfo is not implemented for this allocator yet.")
        return 3, 8

    def recommended_max_memory(self) -> int:
        return 100

    def driver_allocated_memory(self) -> int:
        return 30


@pytest.mark.parametrize(("says_free", "expected"), [(True, (3, 8)), (False, (70, 100))])
def test_memory_of_an_accelerator_is_asked_for_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch, says_free: bool, expected: tuple[int, int]
) -> None:
    backend = FakeBackend(counts=True, says_free=says_free)
    monkeypatch.setattr(torch.accelerator, "memory", backend)
    monkeypatch.setattr(torch, "get_device_module", lambda device: backend)
    assert memory_info(torch.device("mps")) == expected


@pytest.mark.parametrize("counts", [True, False])
def test_an_accelerator_that_does_not_count_is_refused(monkeypatch: pytest.MonkeyPatch, counts: bool) -> None:
    monkeypatch.setattr(torch.accelerator, "memory", FakeBackend(counts=counts, says_free=False))
    monkeypatch.setattr(torch, "get_device_module", lambda device: torch)
    with pytest.raises(ValueError, match=r"^`micro_batch_size` auto, .*: torch .* does not count .*on mps .*number"):
        memory_info(torch.device("mps"))


def asserting(*_: object) -> None:
    """What `torch.accelerator.memory` did on MPS before mid-2026 (pytorch#186430)."""
    raise RuntimeError("device_allocator INTERNAL ASSERT FAILED. Allocator for mps is not a DeviceAllocator.")


@pytest.fixture
def old_mps(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Its module; all that torch.accelerator.memory has fails."""
    for name in ("reset_peak_memory_stats", "get_memory_info", "empty_cache", "memory_reserved"):
        monkeypatch.setattr(torch.accelerator.memory, name, asserting)
    monkeypatch.setattr(torch.accelerator.memory, "max_memory_allocated", asserting)
    emptied: list[int] = []
    module = SimpleNamespace(
        emptied=emptied,
        empty_cache=lambda: emptied.append(1),
        recommended_max_memory=lambda: 100,
        driver_allocated_memory=lambda: 30,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return module


@pytest.mark.parametrize("given", ["auto", "6GiB"])
def test_mps_that_does_not_count_is_refused_before_anything_else_is_asked_of_it(
    old_mps: SimpleNamespace, given: str
) -> None:
    with pytest.raises(ValueError, match=r"does not count memory on mps .*give a number as `micro_batch_size`"):
        open_memory(torch.device("mps"), given)


def test_mps_that_says_nothing_of_its_own_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "memory", FakeBackend(counts=True, says_free=False))
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(recommended_max_memory=lambda: 9))
    with pytest.raises(ValueError, match=r"does not count memory on mps .*driver_allocated_memory"):
        memory_info(torch.device("mps"))


def test_with_a_number_as_micro_batch_mps_that_does_not_count_is_used(old_mps: SimpleNamespace) -> None:
    """The log's peak is what it holds now, and what ran out of memory is let go of."""
    device = torch.device("mps")
    assert peak_memory_bytes(device) == 30
    del old_mps.driver_allocated_memory
    assert peak_memory_bytes(device) == 0
    empty_cache(device)
    assert old_mps.emptied == [1]


@dataclass
class FakeCard:
    """torch.accelerator.memory and torch.cuda of a card of so many bytes, of which others have some."""

    total: int
    taken: int
    reserved: int = 0
    fraction: float | None = None
    peaks_reset: int = 0
    retries: int = 0

    def get_memory_info(self, device: torch.device) -> tuple[int, int]:
        return self.total - self.taken - self.reserved, self.total

    def memory_reserved(self, device: torch.device) -> int:
        return self.reserved

    def max_memory_reserved(self, device: torch.device) -> int:
        return self.reserved

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peaks_reset += 1

    def memory_stats(self, device: torch.device) -> dict[str, int]:
        return {"num_alloc_retries": self.retries}

    def empty_cache(self) -> None:
        self.reserved = 0

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        self.fraction = fraction


GIB = 2**30


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    card = FakeCard(8 * GIB, GIB)
    monkeypatch.setattr(torch.accelerator, "memory", card)
    monkeypatch.setattr(torch, "get_device_module", lambda device: card)
    for module in (accelerator, memory):
        monkeypatch.setattr(module, "empty_cache", lambda device: card.empty_cache())
    return card


@pytest.mark.parametrize(("given", "most"), [("auto", 7 * GIB), ("4GiB", 4 * GIB)])
def test_a_card_is_limited_to_what_the_run_may_use_and_a_reserve_is_left(
    card: FakeCard, given: str, most: int
) -> None:
    """With `auto` too: else a first fragment more takes what others have."""
    memory = open_memory(torch.device("cuda"), given)
    assert card.fraction == most / card.total
    assert memory.limit_bytes == most - round(0.04 * most)


def test_what_the_first_use_took_for_good_is_free_no_more(card: FakeCard) -> None:
    memory = open_memory(torch.device("cuda"), "auto")
    before = memory.limit_bytes
    memory.look_again()
    assert memory.limit_bytes == before
    card.taken += GIB // 2  # kernels, handles of libraries
    memory.look_again()
    assert memory.limit_bytes == before - GIB // 2
    card.taken -= GIB // 2  # somebody else's that went away is not counted on
    memory.look_again()
    assert memory.limit_bytes == before - GIB // 2


def test_peaks_are_those_of_the_training_alone(card: FakeCard) -> None:
    card.reserved = GIB
    begin_counting(torch.device("cuda"))
    assert (card.reserved, card.peaks_reset) == (0, 1)
    card.reserved, card.retries = 3 * GIB, 2
    assert reserved_and_retries(torch.device("cuda")) == (3 * GIB, 2)


def test_a_cpu_and_a_device_that_does_not_count_have_no_allocator_to_speak_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert reserved_and_retries(torch.device("cpu")) is None
    monkeypatch.setattr(torch.accelerator.memory, "memory_stats", asserting)
    assert reserved_and_retries(torch.device("mps")) is None
