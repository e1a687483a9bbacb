"""Retrieval: rows to pairs of texts, and the rank of the right document among all held-out ones."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_by_hand import interval_by_hand
from pair_cases import make_encoder
from tiny import WORDS, make_tokenizer

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example, Origin
from hf_accum.accumulation.grad_cache import InBatchNegatives
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import BadRow, Source
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.retrieval.task import Pooling, TextRetrieval, encode_texts
from recipes.embedded.ontology import ontology_folder
from recipes.embedded.terms import read_terms

POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last")
TASK = TextRetrieval("term", "definition", make_tokenizer(), InBatchNegatives(0.1, chunk_size=3), max_length=6)


def test_a_row_is_a_pair_of_texts() -> None:
    rows = [{"term": "w1", "definition": "w2 w3"}, {"term": "w4 w5", "definition": "w2 w3"}]
    first, second = TASK.encode([(str(i), TASK.prepare(row)) for i, row in enumerate(rows)])
    assert [part.length for part in first.parts] == [3, 4]
    assert first.length == 7
    assert (first.weight, first.num_truncated_tokens) == (1.0, 0)
    assert first.parts[1].features["key"] == second.parts[1].features["key"]
    assert len({part.id for pair in (first, second) for part in pair.parts}) == 4
    inputs = TASK.collate([*first.parts, *second.parts])
    assert inputs["attention_mask"].sum(1).tolist() == [3, 4, 4, 4]


def test_what_is_cut_off_both_texts_is_counted() -> None:
    text = " ".join(WORDS[:10])
    (pair,) = TASK.encode([("0", (text, text))])
    assert [part.length for part in pair.parts] == [6, 6]
    assert pair.num_truncated_tokens == 2 * 6


def test_a_row_without_one_of_the_texts_is_a_bad_one() -> None:
    with pytest.raises(BadRow, match="no such column"):
        TASK.prepare({"term": "w1"})


def test_pooling_takes_no_padding() -> None:
    model = make_encoder()
    ids = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
    mask = (ids != 0).long()
    for pooling in POOLINGS:
        padded = encode_texts(model, {"input_ids": ids, "attention_mask": mask}, pooling)
        alone = encode_texts(model, {"input_ids": ids[:1, :3], "attention_mask": mask[:1, :3]}, pooling)
        torch.testing.assert_close(padded[:1], alone)
    states = model(input_ids=ids[1:]).last_hidden_state[0]
    inputs = {"input_ids": ids[1:], "attention_mask": mask[1:]}
    for pooling, expected in zip(POOLINGS, (states.mean(0), states[0], states[-1]), strict=True):
        torch.testing.assert_close(encode_texts(model, inputs, pooling)[0], expected)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_figures_are_those_of_each_query_among_all_documents(size: int) -> None:
    """Against a plain loop over queries and documents."""
    draw = np.random.default_rng(0)
    documents = [" ".join(draw.choice(WORDS, 4)) for _ in range(9)]
    rows = [{"term": " ".join(draw.choice(WORDS, 2)), "definition": documents[i % 9]} for i in range(20)]
    model = make_encoder()
    source = Source(("memory",), lambda _, start: enumerate(rows[start:], start), {})
    stream = WindowStream(source, TASK.prepare, TASK.encode, ranks=OneRank(), effective_batch_size=7, seed=0)
    cutter = Cutter(WorkingCapacity(Capacity(size)))
    figures = TASK.evaluate(model, stream, ranks=OneRank(), cutter=cutter)

    def vector(text: str) -> torch.Tensor:
        assert TASK.tokenizer is not None
        inputs = TASK.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        return torch.nn.functional.normalize(model.eval()(**inputs).last_hidden_state[0].mean(0), dim=0)

    with torch.no_grad():
        of_documents = {text: vector(text) for text in documents}
        found_at, losses = [], []
        for row in rows:
            query = vector(row["term"])
            scores = {text: float(query @ of) for text, of in of_documents.items()}
            own = scores[row["definition"]]
            found_at.append(sum(score >= own - 1e-12 for score in scores.values()))
            losses.append(float(np.logaddexp.reduce([s / 0.1 for s in scores.values()]) - own / 0.1))
    assert (figures["num_examples"], figures["num_documents"]) == (20, 9)
    assert figures["loss"] == pytest.approx(np.mean(losses), rel=1e-9)
    assert figures["mrr"] == pytest.approx(np.mean([1 / at for at in found_at]))
    for k in (1, 5, 10):
        assert figures[f"recall_at_{k}"] == pytest.approx(np.mean([at <= k for at in found_at]))


def test_what_is_no_number_is_found_last() -> None:
    draw = np.random.default_rng(0)
    encoded: list[Any] = []
    for index in range(4):
        nan = np.full(3, np.nan, dtype=np.float32)
        encoded.append((f"{index}:query", None, nan if index < 2 else draw.normal(size=3).astype(np.float32)))
        encoded.append((f"{index}:document", index, draw.normal(size=3).astype(np.float32)))
    figures = TASK.judge(encoded)
    assert figures["recall_at_1"] <= 0.5
    assert figures["mrr"] <= (2 * 1 / 4 + 2) / 4


def test_an_unknown_best_metric_is_refused() -> None:
    TASK.check_metrics("mrr")
    with pytest.raises(ValueError, match="`best_metric` f1: has to be one of loss, mrr, recall_at_1, recall_at_10"):
        TASK.check_metrics("f1")


def test_the_embedded_terms_are_those_of_the_ontology() -> None:
    rows = list(read_terms(ontology_folder() / "hp.obo"))
    assert len(rows) > 20_000
    assert all(row["term"] and row["definition"] and str(row["id"]).startswith("HP:") for row in rows)
    of_one = {row["term"] for row in rows if row["id"] == "HP:0001250"}
    assert {"Seizure", "Epileptic seizure"} <= of_one
    assert len({(row["id"], str(row["term"]).lower()) for row in rows}) == len(rows)


def test_documents_that_are_the_same_to_the_model_are_one() -> None:
    """Cut to six tokens, or told apart by a space: neither is a negative of the other's query."""
    start = " ".join(WORDS[:4])
    rows = [("w1", f"{start} w5"), ("w2", f"{start} w6 w7"), ("w3", f" {start}"), ("w4", start), ("w5", "w9")]
    keys = [pair.parts[1].features["key"] for pair in TASK.encode([(str(i), row) for i, row in enumerate(rows)])]
    assert len(set(keys)) == 2
    assert len(set(keys[:4])) == 1


def test_at_the_end_each_pair_is_told_and_intervals_are_of_queries_drawn_by_group(tmp_path: Path) -> None:
    """Two pairs of a group, among the same documents; twelve, since 10 is before 2 where ids are sorted as texts."""
    draw = np.random.default_rng(0)
    rows = [
        {"term": " ".join(draw.choice(WORDS, 2)), "definition": " ".join(draw.choice(WORDS, 4))} for _ in range(12)
    ]

    def encode(pairs: Sequence[tuple[str, Any]]) -> list[Example]:
        examples = zip(TASK.encode(pairs), pairs, strict=True)
        return [replace(one, origin=Origin(pair, int(name[2:]) // 2)) for one, (name, pair) in examples]

    source = Source(("a.csv",), lambda _, start: enumerate(rows[start:], start), {})
    stream = WindowStream(source, TASK.prepare, encode, ranks=OneRank(), effective_batch_size=5, seed=0)
    cutter = Cutter(WorkingCapacity(Capacity(3)))
    model = make_encoder()
    figures = TASK.evaluate(model, stream, ranks=OneRank(), cutter=cutter, folder=tmp_path)
    plain = TASK.evaluate(model, stream, ranks=OneRank(), cutter=cutter)
    assert {name: figures[name] for name in plain} == plain
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"a.csv:{number}" for number in range(1, 13)]
    groups = [number // 2 for number in range(12)]
    values = {"loss": [line["loss"] for line in lines], "mrr": [1 / line["place"] for line in lines]}
    values |= {f"recall_at_{k}": [float(line["place"] <= k) for line in lines] for k in (1, 5, 10)}
    assert set(figures["confidence_intervals"]) == set(values)
    for name, of_each in values.items():
        assert figures[name] == pytest.approx(np.mean(of_each), abs=1e-5)
        by_hand = interval_by_hand(
            groups, lambda indices, of_each=of_each: float(np.mean([of_each[i] for i in indices]))
        )
        assert figures["confidence_intervals"][name] == pytest.approx(by_hand, abs=1e-5), name
    worst = json.loads((tmp_path / "errors.jsonl").read_text().splitlines()[0])
    row = rows[int(worst["id"].split(":")[1]) - 1]
    assert (worst["query"], worst["document"]) == (row["term"], row["definition"])
