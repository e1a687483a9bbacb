"""Common cards: what memory they have, and which compute capability.

Memory is the card's nominal size, its GB taken as GiB. Not all of it can be used: the driver keeps some, and where
ECC lies in the memory itself, as on a T4 or an A10, a sixteenth is gone before. How much CUDA leaves of each card is
not known here and not measured, so that a plan takes eleven twelfths of the nominal size for every card: less than is
there rather than more. The context of a process comes on top, as everywhere in a plan.

Compute capabilities are those of https://developer.nvidia.com/cuda-gpus and of the page of older cards that it leads
to; memory is that of NVIDIA's product pages (of a B200 as in the HGX B200, of an A16 that of one of its four GPUs).
Of laptops there are the GeForce cards from the 30 series on, of which many have other memory than the desktop's.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hf_accum.errors import UserError


@dataclass(frozen=True)
class Card:
    """A kind of GPU: its nominal memory in bytes, its compute capability as (major, minor)."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]

    @property
    def usable_bytes(self) -> int:
        """What a plan may count on: the module says why this share."""
        return self.memory_bytes * 11 // 12


_SIZES: Mapping[tuple[int, int], Mapping[str, tuple[int, ...]]] = {
    (6, 0): {"P100": (12, 16), "Quadro GP100": (16,)},
    (6, 1): {
        "GTX 1050 Ti": (4,),
        "GTX 1060": (3, 6),
        "GTX 1070": (8,),
        "GTX 1070 Ti": (8,),
        "GTX 1080": (8,),
        "GTX 1080 Ti": (11,),
        "Titan Xp": (12,),
        "Quadro P4000": (8,),
        "Quadro P5000": (16,),
        "Quadro P6000": (24,),
        "P4": (8,),
        "P40": (24,),
    },
    (7, 0): {"V100": (16, 32), "Titan V": (12,), "Quadro GV100": (32,)},
    (7, 5): {
        "GTX 1650": (4,),
        "GTX 1650 Super": (4,),
        "GTX 1660": (6,),
        "GTX 1660 Super": (6,),
        "GTX 1660 Ti": (6,),
        "RTX 2060": (6, 12),
        "RTX 2060 Super": (8,),
        "RTX 2070": (8,),
        "RTX 2070 Super": (8,),
        "RTX 2080": (8,),
        "RTX 2080 Super": (8,),
        "RTX 2080 Ti": (11,),
        "Titan RTX": (24,),
        "Quadro RTX 3000": (6,),
        "Quadro RTX 4000": (8,),
        "Quadro RTX 5000": (16,),
        "Quadro RTX 6000": (24,),
        "Quadro RTX 8000": (48,),
        "T4": (16,),
    },
    (8, 0): {"A30": (24,), "A100": (40, 80)},
    (8, 6): {
        "RTX 2050 Laptop": (4,),
        "RTX 3050": (6, 8),
        "RTX 3050 Laptop": (4, 6),
        "RTX 3050 Ti Laptop": (4,),
        "RTX 3060": (8, 12),
        "RTX 3060 Laptop": (6,),
        "RTX 3060 Ti": (8,),
        "RTX 3070": (8,),
        "RTX 3070 Laptop": (8,),
        "RTX 3070 Ti": (8,),
        "RTX 3070 Ti Laptop": (8,),
        "RTX 3080": (10, 12),
        "RTX 3080 Laptop": (8, 16),
        "RTX 3080 Ti": (12,),
        "RTX 3080 Ti Laptop": (16,),
        "RTX 3090": (24,),
        "RTX 3090 Ti": (24,),
        "RTX A2000": (6, 12),
        "RTX A4000": (16,),
        "RTX A4500": (20,),
        "RTX A5000": (24,),
        "RTX A5500": (24,),
        "RTX A6000": (48,),
        "A2": (16,),
        "A10": (24,),
        "A10G": (24,),
        "A16": (16,),
        "A40": (48,),
    },
    (8, 9): {
        "RTX 4050 Laptop": (6,),
        "RTX 4060": (8,),
        "RTX 4060 Laptop": (8,),
        "RTX 4060 Ti": (8, 16),
        "RTX 4070": (12,),
        "RTX 4070 Laptop": (8,),
        "RTX 4070 Super": (12,),
        "RTX 4070 Ti": (12,),
        "RTX 4070 Ti Super": (16,),
        "RTX 4080": (16,),
        "RTX 4080 Laptop": (12,),
        "RTX 4080 Super": (16,),
        "RTX 4090": (24,),
        "RTX 4090 Laptop": (16,),
        "RTX 2000 Ada": (16,),
        "RTX 4000 Ada": (20,),
        "RTX 4000 SFF Ada": (20,),
        "RTX 4500 Ada": (24,),
        "RTX 5000 Ada": (32,),
        "RTX 6000 Ada": (48,),
        "L4": (24,),
        "L40": (48,),
        "L40S": (48,),
    },
    (9, 0): {"H100": (80,), "H100 NVL": (94,), "H200": (141,)},
    (10, 0): {"B200": (180,)},
    (12, 0): {
        "RTX 5050": (8,),
        "RTX 5050 Laptop": (8,),
        "RTX 5060": (8,),
        "RTX 5060 Laptop": (8,),
        "RTX 5060 Ti": (8, 16),
        "RTX 5070": (12,),
        "RTX 5070 Laptop": (8,),
        "RTX 5070 Ti": (16,),
        "RTX 5070 Ti Laptop": (12,),
        "RTX 5080": (16,),
        "RTX 5080 Laptop": (16,),
        "RTX 5090": (32,),
        "RTX 5090 Laptop": (24,),
        "RTX PRO 2000 Blackwell": (16,),
        "RTX PRO 4000 Blackwell": (24,),
        "RTX PRO 4500 Blackwell": (32,),
        "RTX PRO 5000 Blackwell": (48, 72),
        "RTX PRO 6000 Blackwell": (96,),
    },
}
"""GiB of each model, by compute capability; of several sizes each is a card, with the size in its name."""

_MODELS: Mapping[str, tuple[Card, ...]] = {
    model: tuple(Card(f"{model} {size}GB" if len(sizes) > 1 else model, size * 2**30, capability) for size in sizes)
    for capability, models in _SIZES.items()
    for model, sizes in models.items()
}

CARDS = tuple(card for cards in _MODELS.values() for card in cards)
"""The cards that are known by name."""

# What says nothing about a card's memory, also as the driver writes names: NVIDIA A100-SXM4-40GB.
_MAKER = re.compile(r"nvidia|geforce|tesla")
_FORM = re.compile(
    r"\b(?:gpu|generation|edition|workstation|server|with max ?q design|max ?q|pcie|sxm\d?|hbm\d?e?)\b"
)


def find_card(text: str) -> Card:
    """The card of a name, however it is spaced and with or without its maker and its memory: rtx3060 12 GiB.

    Raises:
        UserError: for a name that is none, or that of several cards.
    """
    wanted = _key(text)
    by_model = {_key(model): cards for model, cards in _MODELS.items()}
    # With the size at the end: RTX 3090 24GB is the RTX 3090.
    sized = {f"{key}{card.memory_bytes // 2**30}gb": card for key, cards in by_model.items() for card in cards}
    if wanted in sized:
        return sized[wanted]
    cards = by_model.get(wanted, ())
    if len(cards) == 1:
        return cards[0]
    if cards:
        raise UserError(f"{text!r}: has to say which one it is: {', '.join(card.name for card in cards)}")
    names = {_key(card.name): card.name for card in CARDS}
    near = ", ".join(names[key] for key in difflib.get_close_matches(wanted, names, n=4, cutoff=0.5))
    raise UserError(
        f"{text!r}: has to be a card that is known by name{f' (nearest: {near})' if near else ''}; any other is "
        "planned by its memory and compute capability, as `memory 8GiB` and `capability 8.6`"
    )


def _key(name: str) -> str:
    """A name without what may be written in several ways: two names of one card have the same."""
    words = _FORM.sub(" ", re.sub(r"[^a-z0-9]+", " ", _MAKER.sub(" ", name.lower())))
    words = re.sub(r"\b(\d+ ?gi?b)\b(.*)", r"\2\1", words)  # RTX 3050 6GB Laptop GPU
    return re.sub(r"(\d)gi?b$", r"\1gb", words.replace(" ", ""))


def parse_capability(text: str) -> tuple[int, int]:
    """A compute capability as NVIDIA writes it, 8.6, as (major, minor).

    Raises:
        UserError: if it is none.
    """
    match = re.fullmatch(r"\s*([1-9]\d?)\.(\d)\s*", text, re.ASCII)
    if match is None:
        raise UserError(f"{text!r}: has to be a compute capability, as 8.6")
    return int(match[1]), int(match[2])


def format_capability(capability: tuple[int, int]) -> str:
    """A compute capability for people: 8.6."""
    return f"{capability[0]}.{capability[1]}"
