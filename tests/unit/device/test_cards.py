"""Cards: a table that holds together, and names as people and the driver write them."""

import pytest

from hf_accum.device.cards import CARDS, Card, find_card, format_capability, parse_capability
from hf_accum.errors import UserError

KNOWN = {(6, 0), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}
GIB = 2**30


def test_the_table_holds_together() -> None:
    assert len({card.name for card in CARDS}) == len(CARDS) > 100
    assert {card.capability for card in CARDS} == KNOWN
    for card in CARDS:
        assert 3 * GIB <= card.memory_bytes <= 192 * GIB
        assert card.memory_bytes % GIB == 0
        assert "," not in card.name  # several are given with commas


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_is_found_by_its_name_however_it_is_written(card: Card) -> None:
    size = f"{card.memory_bytes // GIB}GB"
    whole = card.name if card.name.endswith(size) else f"{card.name} {size}"
    for name in (
        *(card.name, card.name.lower(), card.name.upper(), card.name.replace(" ", ""), card.name.replace(" ", "-")),
        *(f"NVIDIA {card.name}", f"NVIDIA GeForce {card.name}", f" nvidia  {card.name} ", f"Tesla {card.name}"),
        *(whole, whole.replace("GB", " GB"), whole.replace("GB", "GiB"), whole.replace("GB", " gib")),
        *(whole.replace(" ", ""), whole.replace(" ", "_")),
    ):
        assert find_card(name) == card, name


@pytest.mark.parametrize(
    ("name", "size", "capability"),
    [
        ("GTX 1080 Ti", 11, (6, 1)),
        ("V100 32GB", 32, (7, 0)),
        ("RTX 2080 Ti", 11, (7, 5)),
        ("T4", 16, (7, 5)),
        ("A100 80GB", 80, (8, 0)),
        ("A30", 24, (8, 0)),
        ("RTX 3060 12GB", 12, (8, 6)),
        ("A10", 24, (8, 6)),
        ("RTX 4060 Ti 16GB", 16, (8, 9)),
        ("L40S", 48, (8, 9)),
        ("H200", 141, (9, 0)),
        ("B200", 180, (10, 0)),
        ("RTX 5090", 32, (12, 0)),
    ],
)
def test_a_few_cards_are_what_their_maker_says(name: str, size: int, capability: tuple[int, int]) -> None:
    card = find_card(name)
    assert (card.name, card.memory_bytes, card.capability) == (name, size * GIB, capability)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GeForce RTX 3050 6GB Laptop GPU", "RTX 3050 Laptop 6GB"),
        ("NVIDIA GeForce RTX 3070 Laptop GPU", "RTX 3070 Laptop"),
        ("NVIDIA GeForce RTX 4060 Ti (16 GB)", "RTX 4060 Ti 16GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Blackwell"),
        ("GeForce RTX 2080 with Max-Q Design", "RTX 2080"),
        ("NVIDIA TITAN RTX", "Titan RTX"),
    ],
)
def test_the_driver_s_names_are_found(name: str, found: str) -> None:
    assert find_card(name).name == found


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("RTX 3060", "RTX 3060 8GB, RTX 3060 12GB"),
        ("geforce rtx 3080", "RTX 3080 10GB, RTX 3080 12GB"),
        ("RTX 4060 Ti", "RTX 4060 Ti 8GB, RTX 4060 Ti 16GB"),
        ("A100", "A100 40GB, A100 80GB"),
        ("v100", "V100 16GB, V100 32GB"),
    ],
)
def test_a_name_of_several_cards_lists_them(name: str, variants: str) -> None:
    with pytest.raises(UserError) as refused:
        find_card(name)
    assert str(refused.value) == f"{name!r}: has to say which one it is: {variants}"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RTX 3061", "RTX 3060 12GB"),
        ("RTX 3060 10GB", "RTX 3060 12GB"),
        ("RTX 6000", "RTX 6000 Ada"),
        ("3060", "RTX 3060 8GB"),
        ("Radeon", None),
        ("", None),
        ("GB", None),
    ],
)
def test_an_unknown_name_is_told_the_nearest_and_the_way_out(name: str, nearest: str | None) -> None:
    with pytest.raises(UserError) as refused:
        find_card(name)
    said = str(refused.value)
    assert said.startswith(f"{name!r}: has to be a card that is known by name")
    assert said.endswith("as `memory 8GiB` and `capability 8.6`")
    assert ("nearest" in said) is (nearest is not None)
    assert nearest is None or nearest in said


def test_a_plan_leaves_a_twelfth_of_a_card() -> None:
    assert Card("made up", 12 * GIB, (8, 6)).usable_bytes == 11 * GIB
    assert find_card("T4").usable_bytes <= 16 * GIB * 15 // 16  # ECC takes a sixteenth


@pytest.mark.parametrize("text", ["8.6", "12.0", " 7.5 ", "10.3"])
def test_a_capability_is_read_and_written(text: str) -> None:
    assert format_capability(parse_capability(text)) == text.strip()


def test_capabilities_are_compared_as_numbers() -> None:
    assert parse_capability("7.5") < (8, 0) <= parse_capability("8.0") < parse_capability("12.0")


@pytest.mark.parametrize("text", ["", "8", "86", "8,6", "sm_86", "8.6.1", "0.5", "-8.6", "8.66", "123.0", "٨.6"])
def test_what_is_no_capability_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r": has to be a compute capability, as 8\.6$"):
        parse_capability(text)
