"""What a plan is for: cards by name, or sizes of memory; and the precision that fits them."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_accum.byte_sizes import format_bytes, parse_bytes
from hf_accum.device.cards import Card, find_card, format_capability, parse_capability
from hf_accum.errors import UserError

SIZES = "4GiB,8GiB,16GiB,24GiB"
"""What is planned for where nothing is said."""

PRECISIONS = ("no", "bf16", "fp16")
"""Those of accelerate."""

_BF16_SINCE = (8, 0)


@dataclass(frozen=True)
class Target:
    """Memory to plan for, in bytes. Its compute capability is known of a card, or where it was given."""

    name: str
    budget_bytes: int
    capability: tuple[int, int] | None = None
    card: Card | None = None


def targets_of(cards: str | None, sizes: str | None, capability: str | None) -> list[Target]:
    """The targets of `gpu` or `memory`, names or sizes with commas, and of `capability`, that of the sizes.

    Raises:
        UserError: for one that is wrong, and for two that say the same.
    """
    if cards is None:
        try:
            of_all = None if capability is None else parse_capability(capability)
        except ValueError as error:
            raise UserError(f"`capability` {error}") from error
        try:
            budgets = [parse_bytes(size) for size in (SIZES if sizes is None else sizes).split(",")]
        except ValueError as error:
            raise UserError(f"`memory` {error}") from error
        return [Target(format_bytes(budget), budget, of_all) for budget in budgets]
    for name, value in {"memory": sizes, "capability": capability}.items():
        if value is not None:
            raise UserError(f"`{name}` {value}: has to be left out with `gpu` {cards}, which says it")
    try:
        found = dict.fromkeys(find_card(name.strip()) for name in cards.split(","))
    except ValueError as error:
        raise UserError(f"`gpu` {error}") from error
    return [Target(card.name, card.usable_bytes, card.capability, card) for card in found]


def precision_of(targets: Sequence[Target], asked: str | None) -> str:
    """The precision to plan with: what was asked for, or what each of the targets computes in.

    That is bf16 from compute capability 8.0 on and fp16 below; where several are compared it is one for all. Where no
    capability is known it is `no`.

    Raises:
        UserError: for what is no precision, and for bf16 where it would be emulated.
    """
    if asked is not None and asked not in PRECISIONS:
        raise UserError(f"`precision` {asked}: has to be of {','.join(PRECISIONS)}")
    older = [target for target in targets if target.capability is not None and target.capability < _BF16_SINCE]
    if asked == "bf16" and older:
        target, capability = older[0], format_capability(older[0].capability or (0, 0))
        which = f"compute capability {capability}" if target.card is None else f"{target.name} ({capability})"
        raise UserError(f"`precision` bf16: has to be fp16 or no on {which}: below 8.0 bf16 is emulated, and slow")
    if asked is not None:
        return asked
    if any(target.capability is None for target in targets):
        return "no"
    return "fp16" if older else "bf16"


def oldest(targets: Sequence[Target]) -> tuple[int, int] | None:
    """The lowest compute capability among the targets, whose kernels a plan counts for all of them: they need most.

    None where it is not known of each.
    """
    return min(_known(targets), default=None)


def newest(targets: Sequence[Target]) -> tuple[int, int] | None:
    """The highest one, whose workspaces a plan counts for all of them: of these newer cards have more."""
    return max(_known(targets), default=None)


def _known(targets: Sequence[Target]) -> list[tuple[int, int]]:
    known = [target.capability for target in targets if target.capability is not None]
    return known if len(known) == len(targets) else []
