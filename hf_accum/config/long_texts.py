"""The flags of texts that are longer than what goes through a model at once, and the windows that they ask for."""

from dataclasses import dataclass, field
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt

from hf_accum.config.validation import COUNT, number, require

_MOST_SHARED = 64
WindowPooling = Literal["mean", "max", "attention"]


@dataclass(frozen=True)
class TextWindows:
    """How texts are cut: into windows of `max_length` tokens, special ones included, at most `most` of a text.

    Neighbours share `overlap` tokens. Their logits are pooled.
    """

    max_length: int
    overlap: int
    most: int
    pooling: WindowPooling

    def starts(self, num_tokens: int, num_special: int) -> list[int]:
        """Where windows begin in a text of so many tokens, to cover it as far as `most` allows.

        It is what tokenizers do with `stride` (the overlap) and `return_overflowing_tokens`.
        """
        size = self.max_length - num_special
        step = size - self.overlap
        num_windows = 1 + max(0, -(-(num_tokens - size) // step))
        return [number * step for number in range(min(num_windows, self.most))]


@dataclass(frozen=True, kw_only=True)
class LongTextFlags:
    """Long texts."""

    long_texts: Literal["truncate", "windows"] = "truncate"
    """A text of more than max_length tokens loses its end, or goes through the model in overlapping windows of that
    length, whose logits are pooled."""
    window_overlap: int | None = field(default=None, metadata=number((NonNegativeInt, "at least 0"), other=(None,)))
    """Tokens that neighbouring windows of a text share: what tokenizers call stride. null: a quarter of max_length,
    at most 64."""
    window_pooling: WindowPooling = "mean"
    """What becomes of the logits of a text's windows: their mean, the largest of each label, or a mean with weights
    that are learned (which needs pooling mean or max)."""
    max_windows: int = field(default=64, metadata=COUNT)
    """Of a text; one that needs more loses its end, and is counted."""


def default_overlap(max_length: int) -> int:
    """How many tokens windows of this length share, where nothing is said: a quarter of them, at most 64."""
    return min(_MOST_SHARED, max_length // 4)


def windows_of(config: Any) -> TextWindows | None:
    """What these flags ask for; None: texts are truncated."""
    if config.long_texts == "truncate":
        return None
    return TextWindows(config.max_length, config.window_overlap, config.max_windows, config.window_pooling)


def check_long_texts(config: Any) -> None:
    """Check how the flags of long texts go together with the others, and give the overlap its value.

    Raises:
        UserError: naming the flag, its value and the rule.
    """
    windows = config.long_texts == "windows"
    if config.window_overlap is None:
        overlap = default_overlap(config.max_length) if windows else _MOST_SHARED  # which nothing reads then
        object.__setattr__(config, "window_overlap", overlap)
    if windows:
        rule = "below `max_length`"
        require(config.window_overlap < config.max_length, "window_overlap", config.window_overlap, rule)
        return
    for flag, default in (("window_overlap", _MOST_SHARED), ("window_pooling", "mean"), ("max_windows", 64)):
        value = getattr(config, flag)
        require(value == default, flag, value, f"left out with `long_texts` {config.long_texts}")
