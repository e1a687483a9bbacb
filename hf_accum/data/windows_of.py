"""Windows over anybody's batches: exact accumulation for a loop that has a loader of its own."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import Tensor

from hf_accum.accumulation.batch_parts import num_rows, row_length
from hf_accum.data.loader_windows import LoaderWindows
from hf_accum.distributed.ranks import shared_ranks_of

if TYPE_CHECKING:
    from accelerate import Accelerator


def windows_of(
    accelerator: "Accelerator",
    loader: Iterable[Any],
    *,
    batches_per_step: int | None = None,
    examples_per_step: int | None = None,
    weight: Callable[[Any], float | Tensor] = num_rows,
    length: Callable[[Any], int] = row_length,
    seed: int = 0,
) -> LoaderWindows:
    """Windows over a loader's batches, each the data of one optimizer step. A collective.

    The loader is a DataLoader, one that accelerate prepared, or any iterable of batches that can be read again. A
    batch is a dict, a `BatchEncoding`, a tuple or a dataclass of tensors whose first dimension is the examples; it is
    moved to the device. One pass over the windows is one pass over the loader; the last window may be short. Windows
    that are made anew of the same loader begin its next pass; those of another loader begin with the first one, and
    draw other random numbers.

    A prepared loader gives each rank its own batches. Of any other all ranks read the same ones, and share them out:
    with `examples_per_step` the windows are then the same on any number of ranks. Ranks may have different numbers of
    batches.

    Args:
        batches_per_step: batches in a window on each rank (accelerate's `gradient_accumulation_steps`).
        examples_per_step: or the examples in a window over all ranks; a batch is cut where a window ends.
        weight: the items of a batch, which the summed loss of a window is divided by: its examples, by default. For a
            loss of tokens, the number of labels that count.
        length: tokens of a batch's rows, where the capacity depends on it.
        seed: of what the forward draws (dropout), and of the loader's shuffle where it has no generator of its own.

    Raises:
        UserError: if neither or both sizes are given, or one below 1; for an iterator; while it is iterated: for a
            batch without examples, and where the ranks read different data.

    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_accum import accumulate, windows_of
    >>> accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 1)
    >>> batches = [{"x": torch.ones(3, 2)}, {"x": torch.ones(1, 2)}]
    >>> for window in windows_of(accelerator, batches, batches_per_step=2):
    ...     for micro_batch in window.micro_batches():
    ...         with accumulate(accelerator, model, micro_batch):
    ...             accelerator.backward(micro_batch.scaled(model(micro_batch.batch["x"]).sum()))
    >>> model.bias.grad  # of the mean over all four examples
    tensor([1.])
    """
    of_loader = _made.setdefault(accelerator, {})
    before = of_loader.pop(id(loader), None)
    number = max((other.number + 1 for other in of_loader.values()), default=0) if before is None else before.number
    of_loader[id(loader)] = made = LoaderWindows(
        loader,
        shared_ranks_of(accelerator),
        accelerator.device,
        batches_per_step=batches_per_step,
        examples_per_step=examples_per_step,
        weight=weight,
        length=length,
        seed=seed,
        number=number,
    )
    if before is not None:
        made.follow(before)
    if len(of_loader) > _MOST_LOADERS:
        del of_loader[next(iter(of_loader))]
    return made


_MOST_LOADERS = 8  # that are held: a loop may make one in each epoch, with workers and a dataset of its own

_made: "WeakKeyDictionary[Accelerator, dict[int, LoaderWindows]]" = WeakKeyDictionary()
"""The last ones of each loader, by its id: they hold the loader. Those that were made last are behind."""
