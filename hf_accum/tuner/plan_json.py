"""A plan for programs: what its tables say, as JSON."""

from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import Any

from hf_accum.config.variants import VARIANTS
from hf_accum.device.cards import format_capability
from hf_accum.tuner.plan import MOST_SHOWN, Variant, lengths_of
from hf_accum.tuner.targets import Target

_VERSIONS = ("torch", "transformers", "peft", "hf-accum")


def as_json(
    found: Sequence[Variant], left_out: Sequence[str], chosen: Collection[str], targets: Sequence[Target]
) -> dict[str, Any]:
    """Variants that were planned, by their names in the command; None for those that were chosen and cannot be.

    All bytes are integers. The largest number of examples is None where not one fits, and is looked for up to
    `most_examples`.
    """
    longest, lengths = found[0].max_length, found[0].lengths
    by_name = {variant.name: variant for variant in found}
    variants = {key: by_name.get(name) for key, name in VARIANTS.items() if key in chosen}
    return {
        "unit": lengths.unit,
        "lengths": lengths_of(longest, lengths.vary),
        "most_examples": MOST_SHOWN,
        "assumed": found[0].assumed or None,
        "memory": [_target(target) for target in targets],
        "variants": {key: None if of is None else _variant(of, targets) for key, of in variants.items()},
        "left_out": list(left_out),
        "versions": {name: version(name) for name in _VERSIONS},
    }


def _target(target: Target) -> dict[str, Any]:
    card, capability = target.card, target.capability
    return {
        "name": target.name,
        "budget_bytes": target.budget_bytes,
        "card": None if card is None else {"name": card.name, "memory_bytes": card.memory_bytes},
        "capability": None if capability is None else format_capability(capability),
    }


def _variant(variant: Variant, targets: Sequence[Target]) -> dict[str, Any]:
    """The table of examples, a row each; and one example of the longest length."""
    longest = variant.max_length
    return {
        "name": variant.name,
        "largest": [
            {
                "memory": target.name,
                "budget_bytes": target.budget_bytes,
                "length": length,
                "num_examples": variant.largest(length, target.budget_bytes, MOST_SHOWN) or None,
            }
            for target in targets
            for length in lengths_of(longest, variant.lengths.vary)
        ],
        "over_windows": [
            {
                "memory": target.name,
                "num_windows": len(peaks),
                "reserved_after_first_bytes": peaks[0],
                "reserved_after_last_bytes": peaks[-1],
            }
            for target in targets
            if (peaks := variant.over_windows.get(target.budget_bytes))
        ],
        "one_example": {
            "length": longest,
            "parts_bytes": _named(variant.parts(1, longest)),
            "needed_bytes": variant.needed_bytes(1, longest),
        }
        | {f"{name}_bytes": num_bytes for name, num_bytes in _named(variant.totals(longest)).items()},
    }


def _named(numbers: dict[str, int]) -> dict[str, int]:
    """A table's rows by names without spaces, as whole bytes."""
    return {name.replace(" ", "_"): int(number) for name, number in numbers.items()}
