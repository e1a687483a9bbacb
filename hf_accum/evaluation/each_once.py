"""Predictions for all batches of a loader, each example once over the ranks."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_accum.accumulation.batch_parts import leaves, num_rows, to_device
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import shared_ranks_of
from hf_accum.errors import UserError
from hf_accum.models.modes import keeping_modes

if TYPE_CHECKING:
    from accelerate import Accelerator


def predict_each_once(
    accelerator: "Accelerator",
    model: nn.Module,
    loader: Iterable[Any],
    predict: Callable[[nn.Module, Any], Any],
) -> Any:
    """What `predict(model, batch)` gives for all batches of a loader: each example once, in the loader's order.

    The ranks take turns at the batches, and all get the whole. In eval mode, without gradients; afterwards the model
    is in the mode that it was in. A collective.

    Args:
        accelerator: says on which device and rank this is.
        model: prepared or not; a data-parallel wrapper is looked through.
        loader: the same on all ranks, not prepared: accelerate would have some examples twice.
        predict: a tensor with a row for each example, or a tuple, list or dict of such.

    Returns:
        As `predict`: tensors on the CPU, with a row for each example of the loader.

    Raises:
        UserError: for a prepared loader, one without batches, a prediction with other rows than its batch has, or
            rows of other shapes in other batches (as of tokens, where each is padded to its own longest text).
        RankFailed: if another rank failed.

    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_accum import predict_each_once
    >>> model = torch.nn.Linear(2, 3)
    >>> batches = [(torch.ones(4, 2), torch.zeros(4)), (torch.ones(1, 2), torch.ones(1))]
    >>> classes, labels = predict_each_once(
    ...     Accelerator(cpu=True), model, batches, lambda model, batch: (model(batch[0]).argmax(-1), batch[1])
    ... )
    >>> classes.shape, labels.tolist()
    (torch.Size([5]), [0.0, 0.0, 0.0, 0.0, 1.0])
    """
    if hasattr(loader, "gradient_state"):
        raise UserError(
            "a loader that accelerate prepared: has to be one that it did not, which all ranks read alike; a "
            "prepared one repeats examples so that the ranks have equally many, and these would count twice"
        )
    ranks = shared_ranks_of(accelerator)
    model = model.module if isinstance(model, DistributedDataParallel) else model

    def mine() -> dict[int, Any]:
        found: dict[int, Any] = {}
        with keeping_modes(model), torch.no_grad():
            model.eval()
            for number, batch in enumerate(loader):
                if number % ranks.count == ranks.index:
                    found[number] = _checked(predict(model, to_device(batch, accelerator.device)), batch)
        return found

    of_ranks = on_all_ranks(ranks, mine)
    by_number = {number: found for of_rank in of_ranks for number, found in of_rank.items()}
    if not by_number:
        raise UserError("the loader has no batch: it has to have at least one")
    return _joined([by_number[number] for number in sorted(by_number)])


def _checked(predicted: Any, batch: Any) -> Any:
    rows = num_rows(batch)
    for name, tensor in leaves(predicted):
        if tensor.ndim == 0 or len(tensor) != rows:
            raise UserError(
                f"a prediction {name} of the shape {tuple(tensor.shape)}: has to have a row for each of the {rows} "
                "examples of its batch"
            )
    return to_device(predicted, torch.device("cpu"))


def _joined(parts: list[Any]) -> Any:
    """Tensors of the same place, one below the other."""
    first = parts[0]
    if isinstance(first, Tensor):
        shapes = sorted({tuple(part.shape[1:]) for part in parts})
        if len(shapes) > 1:
            raise UserError(
                f"predictions of rows of the shapes {shapes[0]} and {shapes[-1]}, which are no one tensor: have "
                "`predict` give all rows the same, padded to the longest text of all, or a number for each example"
            )
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, (tuple, list)):
        columns = [_joined(list(column)) for column in zip(*parts, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    raise UserError(
        f"a prediction of the type {type(first).__name__}: has to be a tensor, or a tuple, list or dict of tensors"
    )
