"""The flags of LoRA adapters."""

import re
from dataclasses import dataclass, field

from jsonargparse.typing import NonNegativeInt, restricted_number_type

from hf_accum.config.validation import BELOW_1, check_numbers, number, require

LINEAR, LINEAR_AND_CONV = "all-linear", "all-linear-and-conv"

_RANK = number(
    (NonNegativeInt, "at least 0 (0: full fine-tuning)"),
    (restricted_number_type(None, int, ("<=", 65_536)), "at most 65,536: no layer is wider"),
)
_ALPHA = number((restricted_number_type(None, float, [(">", 0.0), ("<=", 1e6)]), "above 0, and at most 1e6"))


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters."""

    rank: int = field(default=16, metadata=_RANK)
    """Rank of the adapters; 0: no adapters, all weights are trained."""
    alpha: float = field(default=32.0, metadata=_ALPHA)
    """An adapter's output is multiplied by alpha / rank."""
    dropout: float = field(default=0.0, metadata=number(BELOW_1))
    """Dropout on an adapter's input."""
    target_modules: list[str] | str = LINEAR
    """Names (or one regular expression) of the modules to adapt. all-linear: every linear layer but the head, and
    those whose outputs the task never reads. all-linear-and-conv, for models of images: also convolutions without
    groups that have more weights than their adapter."""

    @property
    def targets_by_kind(self) -> bool:
        """Whether the modules are chosen by what they are, not by their names."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() in (LINEAR, LINEAR_AND_CONV)

    def __post_init__(self) -> None:
        """Check every value."""
        check_numbers(self, "lora.")
        require(bool(self.target_modules), "lora.target_modules", self.target_modules, "not empty")
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except (re.error, RecursionError, OverflowError) as error:
                rule = f"names of modules, or a regular expression, which this is not ({error})"
                require(False, "lora.target_modules", self.target_modules, rule)


@dataclass(frozen=True, kw_only=True)
class LoraFlags:
    """LoRA."""

    lora: LoraConfig = field(default_factory=LoraConfig)
