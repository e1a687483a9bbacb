"""How many optimizer steps a run makes, and the learning rate in each."""

from collections.abc import Iterable
from itertools import islice

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hf_accum.config.recipe import RecipeConfig


def count_steps(
    num_examples: int | Iterable[int] | None, effective_batch_size: int, num_epochs: int | None, max_steps: int | None
) -> int:
    """Optimizer steps of a run: by passes over the data or by a number, whichever ends first.

    A pass ends with a short window if the examples do not divide evenly. `num_examples` are those of a pass, or of
    each of the passes one after the other; it may be None (not known) if there is a `max_steps`.
    """
    limits = [] if max_steps is None else [max_steps]
    if num_epochs is not None and num_examples is not None:
        if isinstance(num_examples, int):
            limits.append(num_epochs * -(-num_examples // effective_batch_size))
        else:
            passes = islice(num_examples, max_steps)  # each has a step at least
            limits.append(sum(-(-of_pass // effective_batch_size) for of_pass in passes))
    return min(limits)


def build_scheduler(optimizer: Optimizer, config: RecipeConfig, num_steps: int) -> LRScheduler:
    """The schedule of the learning rate, stepped once for each optimizer step that was made."""
    from transformers import get_scheduler

    return get_scheduler(config.lr_scheduler, optimizer, round(config.warmup_ratio * num_steps), num_steps)
