"""What a plan is for: cards or sizes, and the precision that all of them compute in."""

import pytest

from hf_accum.device.cards import find_card
from hf_accum.errors import UserError
from hf_accum.tuner.targets import Target, newest, oldest, precision_of, targets_of

GIB = 2**30


def test_sizes_are_targets_without_a_card() -> None:
    assert targets_of(None, "8GiB,500MB", None) == [Target("8.00 GiB", 8 * GIB), Target("477 MiB", 500_000_000)]
    assert targets_of(None, "8GiB", "8.6") == [Target("8.00 GiB", 8 * GIB, (8, 6))]


@pytest.mark.parametrize("capability", [None, "7.5"])
def test_where_nothing_is_said_common_sizes_are_taken(capability: str | None) -> None:
    targets = targets_of(None, None, capability)
    assert [target.budget_bytes for target in targets] == [size * GIB for size in (4, 8, 16, 24)]
    assert {target.capability for target in targets} == {None if capability is None else (7, 5)}


def test_cards_are_targets_of_what_can_be_used_of_them_each_once() -> None:
    t4, rtx = find_card("T4"), find_card("RTX 3060 12GB")
    assert targets_of("T4,rtx 3060 12gb , tesla t4", None, None) == [
        Target("T4", t4.usable_bytes, (7, 5), t4),
        Target("RTX 3060 12GB", 11 * GIB, (8, 6), rtx),
    ]


@pytest.mark.parametrize(
    ("cards", "sizes", "capability", "said"),
    [
        ("T4", "8GiB", None, "`memory` 8GiB: has to be left out with `gpu` T4, which says it"),
        ("T4", None, "7.5", "`capability` 7.5: has to be left out with `gpu` T4, which says it"),
        ("no such card", "8GiB", None, "`memory` 8GiB: has to be left out with `gpu` no such card"),
        ("T4,A100", None, None, "`gpu` 'A100': has to say which one it is: A100 40GB, A100 80GB"),
        ("", None, None, "`gpu` '': has to be a card that is known by name"),
        (None, "8GiB,", None, "`memory` '': has to be bytes"),
        (None, "", None, "`memory` '': has to be bytes"),
        (None, "8GiB", "ampere", "`capability` 'ampere': has to be a compute capability, as 8.6"),
    ],
)
def test_flags_that_are_wrong_or_say_the_same_are_refused(
    cards: str | None, sizes: str | None, capability: str | None, said: str
) -> None:
    with pytest.raises(UserError) as refused:
        targets_of(cards, sizes, capability)
    assert str(refused.value).startswith(said)


def of(*capabilities: tuple[int, int] | None) -> list[Target]:
    return [Target("8.00 GiB", 8 * GIB, capability) for capability in capabilities]


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ([None], "no"),
        ([None, None], "no"),
        ([(8, 0)], "bf16"),
        ([(12, 0)], "bf16"),
        ([(7, 5)], "fp16"),
        ([(6, 1)], "fp16"),
        ([(8, 6), (12, 0)], "bf16"),
        ([(8, 6), (7, 5)], "fp16"),  # what each of them computes in
    ],
)
def test_the_precision_is_what_all_compute_in(capabilities: list[tuple[int, int] | None], precision: str) -> None:
    assert precision_of(of(*capabilities), None) == precision
    for asked in ("no", "fp16"):
        assert precision_of(of(*capabilities), asked) == asked
    if precision != "fp16":
        assert precision_of(of(*capabilities), "bf16") == "bf16"


@pytest.mark.parametrize(
    ("targets", "which"),
    [
        (of((7, 5)), "compute capability 7.5"),
        (of((8, 6), (6, 1)), "compute capability 6.1"),
        (targets_of("A30, V100 16GB", None, None), "V100 16GB (7.0)"),
    ],
)
def test_bf16_where_it_is_emulated_is_refused(targets: list[Target], which: str) -> None:
    with pytest.raises(UserError) as refused:
        precision_of(targets, "bf16")
    said = f"`precision` bf16: has to be fp16 or no on {which}: below 8.0 bf16 is emulated, and slow"
    assert str(refused.value) == said


@pytest.mark.parametrize("asked", ["fp8", "BF16", "", "float32"])
def test_what_is_no_precision_is_refused(asked: str) -> None:
    with pytest.raises(UserError, match=rf"^`precision` {asked}: has to be of no,bf16,fp16$"):
        precision_of(of(None), asked)


def test_the_kernels_are_those_of_the_oldest_card_and_of_none_where_one_is_not_known() -> None:
    assert oldest(targets_of("RTX 3090,T4", None, None)) == (7, 5)
    assert oldest(targets_of(None, "8GiB,16GiB", "8.6")) == (8, 6)
    assert oldest(targets_of(None, "8GiB", None)) is None
    assert oldest([Target("a", 1, (8, 0)), Target("b", 1)]) is None


def test_the_workspaces_are_those_of_the_newest_card() -> None:
    assert newest(targets_of("T4,RTX 5060,RTX 3090", None, None)) == (12, 0)
    assert newest(targets_of(None, "8GiB", None)) is None
    assert newest([Target("a", 1, (8, 0)), Target("b", 1)]) is None
