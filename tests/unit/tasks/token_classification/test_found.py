"""What was found in texts: by characters, put together from parts in any order, judged strictly and by overlap."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from drawn_by_hand import interval_by_hand

from hf_accum.tasks.token_classification.found import (
    FoundPart,
    FoundText,
    entities_in,
    figures_of,
    whole_texts,
    with_each_text,
)

TEXT = "no  chest pain,\nfever"
PLACES = ((0, 2), (4, 9), (10, 14), (14, 15), (16, 21))
TRUTH = ("O", "B-sign", "I-sign", "O", "B-sign")


def test_entities_are_told_in_characters_of_the_text() -> None:
    layers = (TRUTH, ("O", "B-part", "O", "O", "O"))
    assert entities_in(TEXT, PLACES, layers) == [
        {"start": 4, "end": 9, "label": "part", "text": "chest"},
        {"start": 4, "end": 14, "label": "sign", "text": "chest pain"},
        {"start": 16, "end": 21, "label": "sign", "text": "fever"},
    ]


def test_texts_are_put_together_from_parts_in_any_order() -> None:
    cuts = [(0, 1, 0, 4), (1, 3, 4, 14), (3, 5, 14, 21)]
    parts = [
        FoundPart(f"{shard}:{10 * row + index}", a, TEXT[a:b], PLACES[i:j], (TRUTH[i:j],), (TRUTH[i:j],))
        for shard in range(2)
        for row in (3, 11)
        for index, (i, j, a, b) in enumerate(cuts)
    ]
    random.Random(0).shuffle(parts)
    texts = whole_texts(parts, parts_per_row=10)
    assert [text.row_id for text in texts] == ["0:3", "0:11", "1:3", "1:11"]
    for text in texts:
        assert (text.text, tuple(text.places)) == (TEXT, PLACES)
        assert text.predicted == text.truth == (TRUTH,)
        assert text.predicted_entities == entities_in(TEXT, PLACES, [TRUTH])


def test_figures_are_strict_and_by_overlap() -> None:
    """By hand: "pain" is a part of "chest pain", and "fever" is right; of the type drug one is too many."""
    predicted = ("B-drug", "O", "B-sign", "O", "B-sign")
    figures = figures_of([FoundText("0:0", TEXT, PLACES, (predicted,), (TRUTH,))])
    assert (figures["precision"], figures["recall"], figures["f1"]) == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    assert (figures["overlap_precision"], figures["overlap_recall"]) == pytest.approx((2 / 3, 1))
    assert {name: row["f1"] for name, row in figures["per_class"].items()} == {"sign": 0.5, "drug": 0.0}
    by_type = figures["per_class_overlap"]
    assert by_type["sign"] == {"precision": 1, "recall": 1, "f1": 1, "num_true": 2, "num_predicted": 2}
    assert by_type["drug"] == {"precision": 0, "recall": 0, "f1": 0, "num_true": 0, "num_predicted": 1}


def test_layers_count_together() -> None:
    layers = (TRUTH, ("O", "B-part", "O", "O", "O"))
    none = tuple(("O",) * 5 for _ in layers)
    figures = figures_of([FoundText("0:0", TEXT, PLACES, layers, layers)])
    assert (figures["f1"], figures["overlap_f1"], figures["per_class"]["part"]["support"]) == (1.0, 1.0, 1)
    figures = figures_of([FoundText("0:0", TEXT, PLACES, none, layers)])
    assert (figures["recall"], figures["overlap_recall"], figures["word_accuracy"]) == (0.0, 0.0, 0.6)


INTERVALS = (
    "precision",
    "recall",
    "f1",
    "macro_f1",
    "word_accuracy",
    "overlap_precision",
    "overlap_recall",
    "overlap_f1",
)


def test_each_text_is_told_and_intervals_are_of_texts_drawn_by_group(tmp_path: Path) -> None:
    """Against seqeval and the overlap on each drawing of texts, two of a patient."""
    draw = random.Random(1)
    names, layer = ("O", "B-sign", "I-sign", "B-drug"), ("O", "B-part", "O", "O", "O")
    tags = [[tuple(draw.choices(names, k=5)) for _ in range(2)] for _ in range(6)]
    texts = [
        FoundText(f"0:{n}", TEXT, PLACES, (guess, layer), (truth, layer), draw.random(), 10.0, 5 + n // 2)
        for n, (guess, truth) in enumerate(tags)
    ]
    figures = figures_of(texts) | {"loss": sum(text.loss for text in texts) / 60}
    found = with_each_text(figures, texts, tmp_path, lambda name: f"notes:{name}")
    assert found["bootstrap"]["num_groups"] == 3
    assert set(found["confidence_intervals"]) == {"loss", *INTERVALS}
    seen: dict[tuple[int, ...], dict[str, float]] = {}

    def of(indices: list[int]) -> dict[str, float]:
        drawn = tuple(sorted(indices))
        if drawn not in seen:
            seen[drawn] = figures_of([texts[index] for index in drawn])
        return seen[drawn]

    groups = [n // 2 for n in range(6)]
    for name in INTERVALS:
        by_hand = interval_by_hand(groups, lambda indices, name=name: of(indices)[name])
        assert found["confidence_intervals"][name] == pytest.approx(by_hand, abs=1e-9), name
    losses = interval_by_hand(groups, lambda indices: float(np.mean([texts[index].loss / 10 for index in indices])))
    assert found["confidence_intervals"]["loss"] == pytest.approx(losses, abs=1e-9)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(line["id"], line["entities"]) for line in lines] == [
        (f"notes:{t.row_id}", t.true_entities) for t in texts
    ]
    assert [line["predicted"] for line in lines] == [text.predicted_entities for text in texts]
    worst = json.loads((tmp_path / "errors.jsonl").read_text().splitlines()[0])
    assert worst["text"] == TEXT
    assert worst["loss"] == pytest.approx(max(text.loss for text in texts) / 10, abs=1e-6)
