"""What is said of the labels of a dataset."""

from hf_accum.data.label_notes import notes_of_labels


def test_labels_that_differ_only_by_capitals_or_spaces_are_named_with_their_numbers() -> None:
    to_train_on = {"EYE": 30, "eye": 4, "left ear": 9, "Left  ear": 8, "leftear": 1, "nose": 1_200}
    held_out = {"EYE": 3, "eye": 1, "left ear": 1, "Left  ear": 1, "leftear": 1, "nose": 100}
    counts, note = notes_of_labels(to_train_on, held_out)
    assert counts.startswith("examples with each label, to train on + held out: nose: 1,200 + 100, EYE: 30 + 3, ")
    assert note == (
        "labels that differ only by capitals or spaces, and are classes of their own: 'EYE' (33) and 'eye' (5), "
        "'Left  ear' (9) and 'left ear' (10) and 'leftear' (2); if they are one, write it in one way in all rows"
    )


def test_labels_that_differ_by_more_are_not() -> None:
    assert len(notes_of_labels({"eye": 3, "eyes": 4, "1": 3, "01": 2}, {"eye": 1, "eyes": 1, "1": 1, "01": 1})) == 1
    assert notes_of_labels({}, {}) == []
    assert notes_of_labels({"a": 2, "b": 3}, {"a": 1})[1:] == ["no held-out example has the label b"]
