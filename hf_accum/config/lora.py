"""The flags of LoRA adapters."""

import re
from dataclasses import dataclass

from hf_accum.config.validation import require

LINEAR_AND_CONV = "all-linear-and-conv"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters."""

    rank: int = 16
    """Rank of the adapters; 0: no adapters, all weights are trained."""
    alpha: float = 32.0
    """An adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout on an adapter's input."""
    target_modules: list[str] | str = "all-linear"
    """Names (or one regular expression) of the modules to adapt; all-linear: every linear layer but the head;
    all-linear-and-conv: of models of images, convolutions too, if they are not by groups, of those that have more
    weights than their adapter."""

    def __post_init__(self) -> None:
        """Check every value."""
        require(self.rank >= 0, "lora.rank", self.rank, "at least 0 (0: full fine-tuning)")
        require(self.rank <= 65_536, "lora.rank", self.rank, "at most 65,536: no layer is wider")
        require(0 < self.alpha <= 1e6, "lora.alpha", self.alpha, "above 0, and at most 1e6")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")
        require(bool(self.target_modules), "lora.target_modules", self.target_modules, "not empty")
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except (re.error, RecursionError, OverflowError) as error:
                rule = f"names of modules, or a regular expression, which this is not ({error})"
                require(False, "lora.target_modules", self.target_modules, rule)
