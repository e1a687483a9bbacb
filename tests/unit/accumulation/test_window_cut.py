"""A window in pieces: by length across its examples, or batch by batch; a rank without examples has its dummy."""

from hypothesis import given
from hypothesis import strategies as st

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.window import Window
from hf_accum.accumulation.window_cut import cut_batches, cut_window


def window_of(examples: list[Example]) -> Window:
    dummy = Example("dummy", 2, 1.0, {}, parts=(Example("d0", 2, 0.0, {}), Example("d1", 2, 0.0, {})))
    return Window(1, 0, 0, tuple(examples), dummy, 0, len(examples), 1.0, 1, "")


def batch_of(name: int, count: int) -> Example:
    parts = tuple(Example(f"{name}/{row}", 3, 0.0, {}) for row in range(count))
    return Example(str(name), 3 * count, 1.0, {}, parts=parts)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 10))
def test_batches_are_cut_each_by_itself_as_evenly_as_can_be(counts: list[int], most: int) -> None:
    batches = [batch_of(name, count) for name, count in enumerate(counts)]
    pieces = cut_batches(window_of(batches), Cutter.of(most)).pieces
    assert [part.id for piece in pieces for part in piece] == [part.id for batch in batches for part in batch.parts]
    for name, count in enumerate(counts):
        sizes = [len(piece) for piece in pieces if piece[0].id.startswith(f"{name}/")]
        assert sum(sizes) == count
        assert len(sizes) == -(-count // most)
        assert max(sizes) - min(sizes) <= 1
    assert all(len({part.id.split("/")[0] for part in piece}) == 1 for piece in pieces)


def test_a_rank_without_examples_has_its_dummy() -> None:
    """One text of it, or its batch."""
    for cut, expected in ((cut_window, ["d0"]), (cut_batches, ["d0", "d1"])):
        assert [[part.id for part in piece] for piece in cut(window_of([]), Cutter.of(5)).pieces] == [expected]


def test_examples_are_cut_by_length() -> None:
    examples = [Example(str(length), length, 1.0, {}) for length in (3, 9, 1, 7)]
    pieces = cut_window(window_of(examples), Cutter.of(2)).pieces
    assert [[example.length for example in piece] for piece in pieces] == [[9, 7], [3, 1]]
