"""The tuner on a plain `nn.Module`: from one real batch, the largest micro-batch of each length that fits."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hf_accum.accumulation.batch_parts import has_rows, leaves, map_leaves, num_rows, row_length, to_device
from hf_accum.accumulation.capacity import Capacity, WorkingCapacity, halved
from hf_accum.accumulation.example import OF_ONES_OWN
from hf_accum.device.memory import open_memory
from hf_accum.errors import UserError
from hf_accum.tuner.search import tune
from hf_accum.tuner.tracing import CannotTrace
from hf_accum.tuner.workload import Workload

_SHORTEST = 8  # tokens, of the table


class FoundCapacity(WorkingCapacity):
    """What `find_capacity` found. `window.micro_batches` takes it; it is lowered where memory runs out all the same.

    It prints as a table. `as_json` and `from_json` keep it in a file, for the same model on such a device.
    """

    def __init__(self, tuned: Capacity, max_length: int | None, how: str) -> None:
        super().__init__(tuned)
        self.max_length = max_length
        self.how = how
        """What was measured, in a line."""

    def __str__(self) -> str:
        lengths = [1] if self.max_length is None else halved(self.max_length, min(_SHORTEST, self.max_length))
        head = ("length", "examples at once")
        rows = [("any" if self.max_length is None else str(n), str(self.tuned.num_examples(n))) for n in lengths]
        return "\n".join([self.how, *(f"{length:>8}  {number:>16}" for length, number in [head, *rows])])

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads: plain values."""
        return {"capacity": self.tuned.as_json(), "max_length": self.max_length, "how": self.how}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "FoundCapacity":
        """The inverse of `as_json`.

        Raises:
            KeyError, TypeError, ValueError: if the value is no such thing.
        """
        longest = value["max_length"]
        return FoundCapacity(
            Capacity.from_json(value["capacity"]), None if longest is None else int(longest), str(value["how"])
        )


def find_capacity(
    model: nn.Module,
    optimizer: Optimizer,
    summed_loss: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    *,
    max_length: int | None = None,
    max_examples: int = 256,
    memory_budget: str | int = "auto",
    length: Callable[[Any], int] = row_length,
    make_batch: Callable[[int, int], Any] | None = None,
    precision: str = "no",
    max_probe_seconds: float | None = 5.0,
) -> FoundCapacity:
    """The largest micro-batch of each length that fits: predicted by a trace, and verified by real ones.

    Call it before the first step, with model and optimizer as they will train, prepared by accelerate or not. All is
    as before afterwards: weights, gradients, the optimizer's state, random numbers. On several ranks each finds its
    own.

    Args:
        model: on its device. A data-parallel wrapper is looked through.
        optimizer: of the model's parameters.
        summed_loss: what the loop runs: of the model and a batch, summed over the batch.
        batch: a real one. Of it those of other sizes are made: its rows again and again, and along its length too.
        max_length: tokens of the longest batch that will come; None: all have the same size.
        max_examples: as many as a rank has in a window; more are not tried.
        memory_budget: bytes ("6GiB") that may be used; "auto": what the device has free. On a CPU a number counts
            tensors alone.
        length: tokens of a batch's rows, as `windows_of` has it.
        make_batch: makes a batch of (num_examples, length) itself, where the rule above does not do.
        precision: accelerate's: no, bf16 or fp16.
        max_probe_seconds: where memory is plenty, no micro-batch that computes longer is tried; None: all are.

    Raises:
        UserError: for a batch from which no others can be made, a model without parameters that are trained, an
            optimizer of other parameters, or a model whose forward depends on values where no device is there to
            measure.
        OutOfMemory: if not even one example of `max_length` fits.

    >>> import torch
    >>> from hf_accum import find_capacity
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batch = {"x": torch.ones(2, 64)}
    >>> capacity = find_capacity(
    ...     model, optimizer, lambda model, batch: model(batch["x"]).sum(), batch, memory_budget="64KiB"
    ... )
    >>> capacity.num_examples(1)
    60
    """
    if max_examples < 1:
        raise UserError(f"`max_examples` {max_examples}: has to be at least 1")
    if max_length is not None and max_length < 1:
        raise UserError(f"`max_length` {max_length}: has to be at least 1")
    model = model.module if isinstance(model, DistributedDataParallel) else model
    if next(model.parameters(), None) is None:
        raise UserError(f"a model of the type {type(model).__name__} without parameters: there is nothing to train")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"a model of the type {type(model).__name__} of which no parameter is to be trained: has to have one "
            "with `requires_grad`, as it will train; thaw it before"
        )
    device = next(model.parameters()).device
    copied = _Optimizers(model, optimizer)
    made = make_batch or _Resized(batch, None if max_length is None else length)
    workload = Workload(
        model,
        copied,
        summed_loss,
        lambda model, batch: summed_loss(model, batch),
        lambda num_examples, length, device: to_device(made(num_examples, length), device),
        1 if max_length is None else max_length,
        replace(OF_ONES_OWN, vary=max_length is not None),
        precision,
    )
    memory = open_memory(device, memory_budget)
    try:
        tuning = tune(workload, memory, device, most=max_examples, max_probe_seconds=max_probe_seconds)
    except CannotTrace as error:
        raise UserError(f"{error}; give a number of examples as the capacity") from error
    return FoundCapacity(tuning.capacity, max_length, str(tuning))


class _Optimizers:
    """Makes optimizers like a given one, without its state, for a model whose parameters may be others by now."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._optimizer: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has one
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = self._optimizer.param_groups
        unknown = [p for group in groups for p in group["params"] if id(p) not in names]
        if unknown:
            raise UserError(
                f"the optimizer has {len(unknown)} parameters that are not of this model (one of shape "
                f"{tuple(unknown[0].shape)}): make it of the model's own, or give a module that holds all it steps"
            )
        self._groups = [[names[id(p)] for p in group["params"]] for group in groups]

    def __call__(self, model: nn.Module) -> Optimizer:
        parameters = dict(model.named_parameters())
        made: Any = object.__new__(type(self._optimizer))
        made.__dict__ = dict(self._optimizer.__dict__)
        made.state = defaultdict(dict)
        made.param_groups = [
            {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            | {"params": [parameters[name] for name in names]}
            for group, names in zip(self._optimizer.param_groups, self._groups, strict=True)
        ]
        return made


class _Resized:
    """Makes of a batch those of other sizes: its rows repeated, and along each dimension that is its length.

    Raises:
        UserError: if it cannot be told which dimensions are lengths.
    """

    def __init__(self, batch: Any, length: Callable[[Any], int] | None) -> None:
        self._batch = to_device(batch, torch.device("cpu"))
        self._rows = num_rows(batch)
        self._length = None if length is None else int(length(batch))
        if self._length is None:
            return
        has_length = False
        for name, tensor in leaves(batch):
            if tensor.ndim and len(tensor) == self._rows:
                dims = self._dims(tensor)
                has_length |= bool(dims)
                if len(dims) > 1 and not _is_square(tensor, dims):
                    raise UserError(
                        f"`{name}` of the batch has the shape {tuple(tensor.shape)}, in which {len(dims)} dimensions "
                        f"may be its length, {self._length}: give a batch of another length, or `make_batch`"
                    )
        if not has_length:
            raise UserError(
                f"no tensor of the batch has a dimension of its length, {self._length}: give `length`, or "
                "`make_batch`"
            )

    def _dims(self, tensor: Tensor) -> list[int]:
        return [dim for dim in range(1, tensor.ndim) if tensor.shape[dim] == self._length]

    def __call__(self, num_examples: int, length: int) -> Any:
        def repeated(name: str, values: list[Any]) -> list[Any] | None:
            if not has_rows(name, values, self._rows):
                return None
            return [values[row % self._rows] for row in range(num_examples)]

        def resized(name: str, leaf: Any) -> Any:
            if isinstance(leaf, Sequence) and not isinstance(leaf, (str, bytes)) and len(leaf) == self._rows:
                return [leaf[row % self._rows] for row in range(num_examples)]
            if not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != self._rows:
                return leaf
            dims = [] if self._length is None else self._dims(leaf)
            for dim, size in [(0, num_examples), *((dim, length) for dim in dims)]:
                leaf = leaf.index_select(dim, torch.arange(size, device=leaf.device) % leaf.shape[dim])
            return leaf

        return map_leaves(self._batch, resized, of_list=repeated)


def _is_square(tensor: Tensor, dims: list[int]) -> bool:
    """A mask of each token with each: of booleans, or with one head for all."""
    return (
        len(dims) == 2
        and dims[1] == dims[0] + 1 == tensor.ndim - 1
        and not (tensor.ndim == 3 and tensor.is_floating_point())
    )
