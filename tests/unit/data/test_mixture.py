"""Several datasets as one source, and what is said of them."""

from fractions import Fraction
from typing import Any

import pytest
from numbered_rows import source_of

from hf_accum.data.mixture import Mixture, joined, part_of
from hf_accum.data.source import Source
from hf_accum.errors import UserError


def mixture(*weights: int, sizes: tuple[int, ...] | None = None, until: Any = "all_exhausted") -> Mixture:
    return Mixture(("A", "B"), tuple(map(Fraction, weights)) or None, until, (2, 1), (1, 3), sizes)


def values(source: Source) -> list[list[Any]]:
    return [[row["value"] for _, row in source.read(s, 0)] for s in range(source.num_shards)]  # type: ignore[index]


def test_shards_stand_behind_each_other_and_can_be_parted_again() -> None:
    first, second = source_of([2, 1]), source_of([3])
    whole = joined(["data/a.csv", "b"], [first, second])
    assert values(whole) == [*values(first), *values(second)]
    assert whole.names == ("data/a.csv/file-0", "data/a.csv/file-1", "b/file-0")
    assert [number for number, _ in whole.read(2, 1)] == [1, 2]
    parts = [part_of(whole, shards) for shards in mixture().shards]
    assert [values(part) for part in parts] == [values(first), values(second)]
    assert [part.names for part in parts] == [whole.names[:2], whole.names[2:]]
    assert [list(shards) for shards in mixture().eval_shards] == [[0], [1, 2, 3]]


def test_a_file_is_called_by_its_path_and_classes_and_notes_are_kept() -> None:
    one = Source(("notes.csv",), source_of([1]).read, {"label": ("a", "b")}, notes=("one was left out",))
    whole = joined(["data/notes.csv", "b"], [one, source_of([1])])
    assert whole.names == ("data/notes.csv", "b/file-0")
    assert whole.class_names == {"label": ("a", "b")}
    assert whole.notes == ("data/notes.csv: one was left out",)


def test_a_dataset_without_a_row_to_train_on_is_named() -> None:
    assert mixture().with_sizes([7, 5]).sizes == (7, 5)
    with pytest.raises(UserError, match="dataset 'B' has no usable example to train on"):
        mixture().with_sizes([3, 0])


@pytest.mark.parametrize(
    ("weights", "until", "sizes"),
    [
        ((), "all_exhausted", [100, 100]),
        ((), "first_exhausted", [100, 100]),
        ((1, 1), "all_exhausted", [180, 180]),
        ((1, 1), "first_exhausted", [19, 20]),  # the tenth of B is the 19th or 20th
        ((9, 1), "all_exhausted", [100, 100]),
    ],
)
def test_a_pass_ends_with_the_last_dataset_or_with_the_first(
    weights: tuple[int, ...], until: Any, sizes: list[int]
) -> None:
    found = list(mixture(*weights, sizes=(90, 10), until=until).pass_sizes(2))
    assert all(abs(one - other) <= 1 for one, other in zip(found, sizes, strict=True))


def test_how_often_a_row_is_seen_is_said() -> None:
    said = mixture(1, 1, sizes=(90, 10)).lines(num_steps=6, effective_batch_size=32)
    assert [line.split()[0] for line in said] == ["mixed", "mixed"]
    assert "50.00% of A: 90 examples to train on, each seen 1.00 times" in said[0]
    assert "50.00% of B: 10 examples to train on, each seen 8.90 times" in said[1]
    by_size = mixture(sizes=(90, 10)).lines(num_steps=8, effective_batch_size=25)
    assert "10.00% of B: 10 examples to train on, each seen 2.00 times" in by_size[1]
    early = mixture(1, 1, sizes=(90, 10)).lines(num_steps=2, effective_batch_size=45)
    assert "A: 90 examples to train on, each seen 0.50 times" in early[0]
    assert "50.00% of A, 50.00% of B" in mixture(1, 1).lines(6, 32)[0]
    assert "A, B: read one after the other" in mixture().lines(6, 32)[0]
