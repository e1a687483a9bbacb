"""Overlapping entities, against sets of characters."""

from hypothesis import given
from hypothesis import strategies as st

from hf_accum.evaluation.span_overlap import overlap_figures

spans = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5), st.sampled_from("ab")), max_size=6)
texts = st.lists(st.tuples(spans, spans), max_size=4)


@given(texts)
def test_found_is_what_shares_a_character(drawn: list[tuple[list[tuple[int, int, str]], ...]]) -> None:
    sides = [
        [[(start, start + size, label) for start, size, label in text[side]] for text in drawn] for side in (0, 1)
    ]
    figures, by_label = overlap_figures(*sides)

    def share(ones: list[list[tuple[int, int, str]]], others: list[list[tuple[int, int, str]]], labels: str) -> float:
        hits = [
            any(set(range(start, end)) & set(range(*other[:2])) for other in of_other if other[2] == label)
            for of_one, of_other in zip(ones, others, strict=True)
            for start, end, label in of_one
            if label in labels
        ]
        return sum(hits) / len(hits) if hits else 0.0

    by_name = {name.removeprefix("overlap_"): value for name, value in figures.items()}
    for labels, found in [("ab", by_name), *by_label.items()]:
        precision, recall = share(sides[0], sides[1], labels), share(sides[1], sides[0], labels)
        assert (found["precision"], found["recall"]) == (precision, recall)
        assert found["f1"] == (2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    for label, found in by_label.items():
        for side, name in enumerate(("num_predicted", "num_true")):
            assert found[name] == sum(one[2] == label for text in sides[side] for one in text)
    assert set(by_label) == {one[2] for side in sides for text in side for one in text}
