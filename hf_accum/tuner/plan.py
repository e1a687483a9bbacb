"""What fits where, without a device and without weights: from the model's config and a trace."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hf_accum.accumulation.capacity import halved
from hf_accum.accumulation.example import TOKENS, Lengths
from hf_accum.byte_sizes import format_bytes
from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.variants import VARIANTS
from hf_accum.errors import UserError
from hf_accum.tuner.kernels import Capability
from hf_accum.tuner.prediction import Prediction, predict_from
from hf_accum.tuner.real_windows import windows_of
from hf_accum.tuner.reserved import ReservedBytes
from hf_accum.tuner.tracing import CannotTrace, Tracer
from hf_accum.tuner.workload import Workload

C = TypeVar("C", bound=RecipeConfig)
Build = Callable[[C], Workload]
"""A recipe's `workload`: what it trains, by its config, without weights."""


@dataclass(frozen=True)
class Variant:
    """One way to train the same model, and what it is predicted to need.

    Bytes are those of tensors, but for `reserved` and `on_cards`: these are of cards, where they are planned for.
    """

    name: str
    prediction: Prediction
    max_length: int
    lengths: Lengths = TOKENS
    assumed: str = ""
    reserved: int | None = None
    """What a card's allocator would hold for one example of the longest length; None: no card is planned for."""
    on_cards: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """By budget and length: the most examples for which what the allocator holds is within the budget."""
    over_windows: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By budget: what it holds at the most up to the end of each window of real lengths; none, where one example of
    the longest length does not fit.
    """

    def needed_bytes(self, num_examples: int, length: int) -> int:
        """The peak of training at a micro-batch, the optimizer step included."""
        return self.prediction.needed_bytes(num_examples, length)

    def largest(self, length: int, budget_bytes: float, at_most: int) -> int:
        """The most examples of a length that fit; 0: not one.

        On a card as many as of the next longer length that was planned.
        """
        longer = [of for budget, of in self.on_cards if budget == budget_bytes and of >= length]
        if longer:
            return min(at_most, self.on_cards[int(budget_bytes), min(longer)])
        return self.prediction.largest(length, budget_bytes, at_most)

    def parts(self, num_examples: int, length: int) -> dict[str, int]:
        """Where the bytes go at the peak of a forward and backward; they add up to it."""
        fixed = self.prediction.fixed
        peak = self.prediction.training.bytes_at(num_examples, length)
        activations = self.prediction.activations.bytes_at(num_examples, length) - fixed.total
        return {
            "weights": fixed.weights,
            "gradients": fixed.gradients,
            "optimizer state": fixed.optimizer_state,
            "activations": activations,
            "temporaries": peak - fixed.total - activations,
        }

    def totals(self, length: int) -> dict[str, int]:
        """The peak for one example of a length, what each beyond many adds, and the peaks of what is not training.

        Where a card is planned for, what its allocator holds for that example comes first.
        """
        training = self.prediction.training
        reserved = {} if self.reserved is None or length != self.max_length else {"reserved": self.reserved}
        return reserved | {
            "peak": training.bytes_at(1, length),
            "each further one": training.bytes_at(65, length) - training.bytes_at(64, length),
            "optimizer step": self.prediction.fixed.optimizer_peak,
            "evaluation": self.prediction.evaluation.bytes_at(1, length),
        }


MOST_SHOWN = 4096
"""Examples: a plan does not look for more."""


def plan(
    build: Build[C],
    config: C,
    variants: Collection[str],
    capability: Capability | None = None,
    budgets: Collection[int] = (),
    real_lengths: Sequence[int] = (),
    newest: Capability | None = None,
) -> tuple[list[Variant], list[str]]:
    """Predict variants of a configuration; also says which cannot be, and why.

    With the compute `capability` of a card, as (8, 6), by its kernels and its allocator, for `budgets` in bytes.
    Where cards are compared, it is that of the oldest, and `newest` another one: its workspaces are larger.
    With `real_lengths` of examples also over windows of these, in their order.

    A variant sets `lora.rank` (to 0, or 16 where it is 0), `quantization` and `gradient_checkpointing` itself.

    Raises:
        UserError: if none of them can, and for real lengths of what has one length.
    """
    rank = config.lora.rank or 16
    lora, full = replace(config.lora, rank=rank), replace(config.lora, rank=0)
    changes = {
        "full": {"lora": full, "quantization": "none", "gradient_checkpointing": False},
        "full_checkpointing": {"lora": full, "quantization": "none", "gradient_checkpointing": True},
        "lora": {"lora": lora, "quantization": "none", "gradient_checkpointing": False},
        "lora_checkpointing": {"lora": lora, "quantization": "none", "gradient_checkpointing": True},
        "qlora": {"lora": lora, "quantization": "nf4", "gradient_checkpointing": False},
        "qlora_checkpointing": {"lora": lora, "quantization": "nf4", "gradient_checkpointing": True},
    }
    found: list[Variant] = []
    impossible: dict[str, list[str]] = {}
    for key, name in VARIANTS.items():
        if key not in variants:
            continue
        try:
            work = build(replace(config, **changes[key]))
            size = config.effective_batch_size * work.num_parts
            found.append(_variant(name, work, capability, budgets, real_lengths, size, newest))
        except (ValueError, CannotTrace) as error:
            impossible.setdefault(str(error), []).append(name)
    if not found:
        raise UserError("; ".join(impossible))
    return found, [f"{', '.join(names)}: {why}" for why, names in impossible.items()]


def _variant(
    name: str,
    work: Workload,
    capability: Capability | None = None,
    budgets: Collection[int] = (),
    real_lengths: Sequence[int] = (),
    window_size: int = 1,
    newest: Capability | None = None,
) -> Variant:
    if real_lengths and not work.lengths.vary:
        raise UserError(f"`lengths`: has to be left out, as all examples have {work.max_length} {work.lengths.unit}")
    tracer = Tracer(work, capability)
    with tracer.started() as trace:
        prediction = predict_from(tracer, trace)
        variant = Variant(name, prediction, work.max_length, work.lengths, work.assumed)
        if capability is None:
            return variant
        reserved = ReservedBytes(tracer, trace, newest)
        on_cards = {
            (budget, length): reserved.largest(prediction, length, budget, MOST_SHOWN)
            for budget in budgets
            for length in lengths_of(work.max_length, work.lengths.vary)
        }
        over_windows: dict[int, list[int]] = {}
        for budget in budgets if real_lengths else ():
            if largest := on_cards[budget, work.max_length]:
                windows = windows_of(real_lengths, window_size, work.max_length, prediction, largest)
                over_windows[budget] = reserved.over(windows)
        of_one = reserved.bytes_at(1, work.max_length)
        return replace(variant, reserved=of_one, on_cards=on_cards, over_windows=over_windows)


def lengths_of(max_length: int, vary: bool = True) -> list[int]:
    """The lengths that a plan shows: the longest and, where they vary, halves of it down to 32."""
    return halved(max_length, 32) if vary else [max_length]


def what_would_fit(build: Build[C], config: C, budget_bytes: float) -> list[str]:
    """Changes of a configuration of which nothing fits, each with what it then needs, for the error message.

    Those that fit come first; of the others only how much they lack is said.
    """

    def variant_of(name: str, changed: C) -> Variant | None:
        try:
            return _variant(name, build(changed))
        except (ValueError, CannotTrace):
            return None  # this model cannot do that

    base = None
    if config.gradient_checkpointing == "auto":  # that was tried already, if the model can
        base = variant_of("", replace(config, gradient_checkpointing=True))
        config = replace(config, gradient_checkpointing=base is not None)
    base = base or variant_of("", config)
    if base is None:
        return []
    ways: list[tuple[bool, str]] = []
    for flags, changed in _less_memory(config, base.lengths).items():
        variant = variant_of(flags, changed)
        if variant is None:
            continue
        needed = variant.needed_bytes(1, variant.max_length)
        if needed >= base.needed_bytes(1, base.max_length):
            continue
        number = variant.largest(variant.max_length, budget_bytes, config.effective_batch_size)
        if number:
            example = "example" if number == 1 else "examples"
            ways.append((True, f"{flags}: {number} {example} at once ({format_bytes(needed)} for one)"))
        else:
            ways.append((False, f"{flags}: not enough by itself, {format_bytes(needed - budget_bytes)} too much"))
    return [text for _, text in sorted(ways, key=lambda way: not way[0])]


def _less_memory(config: C, lengths: Lengths = TOKENS) -> dict[str, C]:
    """Changes that save memory, by the flags that make them: of those the ones that the config does not refuse."""
    ways: dict[str, dict[str, Any]] = {}
    if config.gradient_checkpointing is not True:
        ways["`gradient_checkpointing true`"] = {"gradient_checkpointing": True}
    if config.lora.rank == 0:
        ways["`lora.rank 16`"] = {"lora": replace(config.lora, rank=16)}
    elif config.lora.rank > 4:
        ways["`lora.rank 4`"] = {"lora": replace(config.lora, rank=4)}
    if config.quantization == "none" and config.lora.rank > 0:
        ways["`quantization nf4`"] = {"quantization": "nf4"}
    if config.optimizer == "adamw":
        ways["`optimizer adamw_8bit`"] = {"optimizer": "adamw_8bit"}
    if config.dropout != 0:
        ways["`dropout 0`"] = {"dropout": 0.0}
    longest: int = getattr(config, lengths.flag)
    for part in (2, 4):
        length = longest // part // lengths.flag_step * lengths.flag_step
        if length >= 32:
            ways[f"`{lengths.flag} {length}`"] = {lengths.flag: length}
    changes: dict[str, C] = {}
    for flags, values in ways.items():
        with suppress(ValueError):  # of a recipe's own: no adapters with `batch_norm micro_batch`, say
            changes[flags] = replace(config, **values)
    return changes
