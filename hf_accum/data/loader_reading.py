"""Anybody's loader, read so that each pass can be read again: what it draws at random is seeded by pass and batch."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler

from hf_accum.errors import UserError
from hf_accum.seeding import derive_seed, keeping_random_state


class LoaderReading:
    """A loader (a DataLoader, one that accelerate prepared, or any iterable of batches) with a state.

    While a batch is taken the common generators of Python, numpy and torch are seeded by pass and batch; afterwards
    they are as they were. So a shuffle, and what a dataset draws, is the same when the pass is read again, whatever
    the training draws. Of generators of the loader's own the state at the begin of the pass is kept.

    Raises:
        UserError: for an iterator, which can be read once only, and for what cannot be iterated over.
    """

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        if isinstance(loader, Iterator):
            raise UserError(
                f"a loader of the type {type(loader).__name__}: has to be one that can be read again, such as a "
                "DataLoader or a list of batches, and no iterator; a resumed run reads it from its begin"
            )
        if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
            is_function = callable(loader) and hasattr(loader, "__name__")
            raise UserError(
                f"a loader of the type {type(loader).__name__}: has to be one that gives batches when it is iterated "
                "over, such as a DataLoader or a list of batches"
                + (f"; `{loader.__name__}` is a function: give what it makes" if is_function else "")  # type: ignore[attr-defined]
            )
        self.loader = loader
        self.seed = seed
        self._before = self._own_state()

    def batches(self, epoch: int) -> Iterator[Any]:
        """All batches of a pass, from its begin."""
        self._before = self._own_state()
        _set_epoch(self.loader, epoch)
        iterator: Iterator[Any] | None = None
        number = 0
        while True:
            with keeping_random_state():
                _seed(derive_seed(self.seed, "loader", epoch, number))
                if iterator is None:
                    iterator = iter(self.loader)
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            number += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The seed, and what the loader's own generators were at the begin of the pass."""
        return {"seed": self.seed, "generators": self._before[0], "seeds": self._before[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have the next pass begin as that one did.

        Raises:
            UserError: if the loader has other generators.
        """
        generators, samplers = _generators(self.loader), _seeded_samplers(self.loader)
        if len(generators) != len(state["generators"]) or len(samplers) != len(state["seeds"]):
            raise UserError(
                "the loader has other samplers than the one whose state this is: give the same loader, built alike"
            )
        for generator, before in zip(generators, state["generators"], strict=True):
            generator.set_state(torch.as_tensor(before, dtype=torch.uint8, device="cpu"))
        for sampler, seed in zip(samplers, state["seeds"], strict=True):
            sampler.initial_seed = seed
        self.seed = state["seed"]
        self._before = self._own_state()

    def _own_state(self) -> tuple[list[torch.Tensor], list[int]]:
        generators = [generator.get_state() for generator in _generators(self.loader)]
        return generators, [sampler.initial_seed for sampler in _seeded_samplers(self.loader)]


def repeats_examples(loader: Any) -> bool:
    """Whether a loader that accelerate prepared repeats examples at the end of a pass, so that ranks have as many."""
    sampler: Any = getattr(loader, "batch_sampler", None)
    if not is_shared_out(loader) or getattr(loader, "_drop_last", False) or getattr(sampler, "drop_last", False):
        return False
    if isinstance(getattr(loader, "dataset", None), IterableDataset) or is_dispatched(loader):
        return True
    if not getattr(sampler, "even_batches", False):
        return False
    ranks, size = sampler.num_processes, sampler.batch_size or 1
    return len(loader.dataset) % (size if sampler.split_batches else size * ranks) != 0


def is_dispatched(loader: Any) -> bool:
    """Whether rank 0 reads for all ranks, which then ask together."""
    return type(loader).__name__ == "DataLoaderDispatcher"


def is_shared_out(loader: Any) -> bool:
    """Whether each rank has a part of its own: of a loader that accelerate prepared, a `DistributedSampler`, or a
    dataset that was split by node.
    """
    samplers = _samplers(loader)
    of_dataset = getattr(getattr(loader, "dataset", loader), "_distributed", None)
    is_split = any(isinstance(sampler, DistributedSampler) for sampler in samplers) or of_dataset is not None
    return hasattr(loader, "gradient_state") or is_split


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed)


def _set_epoch(loader: Any, epoch: int) -> None:
    owners = [loader, *_samplers(loader), getattr(loader, "dataset", None)]
    for owner in owners:
        if hasattr(owner, "set_epoch"):
            owner.set_epoch(epoch)


def _samplers(loader: Any) -> list[Any]:
    """Of a DataLoader, and those within them."""
    if not isinstance(loader, DataLoader):
        return []
    found: list[Any] = []
    waiting = [loader.sampler, loader.batch_sampler]
    while waiting:
        sampler = waiting.pop(0)
        if sampler is None or any(sampler is one for one in found):
            continue
        found.append(sampler)
        waiting += [getattr(sampler, "sampler", None), getattr(sampler, "batch_sampler", None)]
    return found


def _generators(loader: Any) -> list[torch.Generator]:
    if _seeded_samplers(loader):
        return []  # which are seeded anew in each pass
    owners = [loader, *_samplers(loader), getattr(loader, "dataset", None)]
    found = [getattr(owner, name, None) for owner in owners for name in ("generator", "synchronized_generator")]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


def _seeded_samplers(loader: Any) -> list[Any]:
    """Of accelerate: they shuffle by a seed of their own and the pass."""
    return [one for one in _samplers(loader) if isinstance(one, RandomSampler) and hasattr(one, "initial_seed")]
