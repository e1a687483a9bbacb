"""The flags of the optimization: steps, learning rate, gradient."""

from dataclasses import dataclass, field
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, restricted_number_type

from hf_accum.config.validation import COUNT, COUNT_OR_NULL, number, require

_FINITE = (PositiveFloat, "a finite number above 0")
# Beyond these nothing is learned: weights become infinite, or the gradient zero.
_AT_MOST = (restricted_number_type(None, float, ("<=", 100.0)), "at most 100")
_LEARNING_RATE = 3e-4
_LEARNING_RATE_OR_NULL = number(_FINITE, _AT_MOST, other=(None,))
_DECAY = number((restricted_number_type(None, float, [(">", 0.0), ("<=", 1.0)]), "in (0, 1]"), other=(None,))
_MAX_GRAD_NORM = number(_FINITE, (restricted_number_type(None, float, (">=", 1e-12)), "at least 1e-12"))


@dataclass(frozen=True, kw_only=True)
class OptimizationFlags:
    """Optimization."""

    max_steps: int | None = field(default=None, metadata=COUNT_OR_NULL)
    """Optimizer steps; training ends by this or by num_epochs, whichever comes first."""
    num_epochs: int | None = field(default=1, metadata=COUNT_OR_NULL)
    """Passes over the data; null: as many as max_steps takes."""
    effective_batch_size: int = field(default=32, metadata=COUNT)
    """Examples per optimizer step, all ranks together."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """8bit: its state in 2 bytes for each trained weight in the place of 8, by bitsandbytes; paged: on the host where
    a CUDA device has no room for it."""
    learning_rate: float | None = field(default=None, metadata=_LEARNING_RATE_OR_NULL)
    """The highest learning rate of the schedule; null: 3e-4, or what belongs to an embedded dataset."""
    learning_rate_head: float | None = field(default=None, metadata=_LEARNING_RATE_OR_NULL)
    """That of the head; null: learning_rate."""
    layerwise_lr_decay: float | None = field(default=None, metadata=_DECAY)
    """Each layer learns at the rate of the one above times this, the top one at learning_rate; null: all at that."""
    freeze_embeddings: bool = False
    """Do not train the embeddings where all weights are trained (lora.rank 0): no gradient and no state for them."""
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"] = (
        "linear"
    )
    """The learning rate's schedule, by transformers' name."""
    warmup_ratio: float = field(default=0.1, metadata=number((ClosedUnitInterval, "in [0, 1]")))
    """Share of the optimizer steps in which the learning rate rises."""
    weight_decay: float = field(default=0.01, metadata=number((NonNegativeFloat, "a finite number, at least 0")))
    """Of AdamW, on all weights but biases and norms."""
    max_grad_norm: float = field(default=1.0, metadata=_MAX_GRAD_NORM)
    """The gradient of a window is clipped to this norm."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A window whose loss or gradient is not finite stops the run, or is left out; its examples' ids go to
    nonfinite.jsonl."""
    max_nonfinite_skips: int = field(default=10, metadata=COUNT)
    """How many windows on_nonfinite skip may leave out before the run stops all the same."""

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate, whether it is given or not."""
        return _LEARNING_RATE if self.learning_rate is None else self.learning_rate


def check_optimization(config: OptimizationFlags) -> None:
    """Check how the flags of the optimization go together."""
    require(
        config.max_steps is not None or config.num_epochs is not None,
        "num_epochs",
        config.num_epochs,
        "a number where max_steps is null: one of them has to end the training",
    )
    # A step multiplies a weight by 1 - learning_rate * weight_decay.
    require(
        config.weight_decay * config.peak_learning_rate < 1,
        "weight_decay",
        config.weight_decay,
        f"below 1 / learning_rate ({1 / config.peak_learning_rate:g}): every step would turn the weights around",
    )
