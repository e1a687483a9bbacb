"""Tagging: which token stands for a word, and entities that do not depend on where texts are cut."""

import itertools
import json
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score
from seqeval.metrics.sequence_labeling import get_entities
from tiny import CONFIGS, make_tokenizer
from tokenizers_of_four_kinds import KINDS, tokenizer_of
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, AutoTokenizer

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.losses import IGNORE, CrossEntropy
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.token_classification.data import MOST_PARTS, Cutting, Part, open_tagged_texts, part_of
from hf_accum.tasks.token_classification.files import Columns
from hf_accum.tasks.token_classification.found import whole_texts
from hf_accum.tasks.token_classification.reading import SpanColumns
from hf_accum.tasks.token_classification.tags import labels_of
from hf_accum.tasks.token_classification.task import EntityTagging
from hf_accum.tasks.tokenization import count_tokens
from recipes.embedded.models import minilm
from recipes.embedded.nero import tags_of, words_of

LABELS = labels_of(("drug", "sign"))


def minilm_task(max_length: int = 64) -> EntityTagging:
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    return EntityTagging(LABELS, CrossEntropy(), tokenizer, max_length)


def test_the_first_token_of_a_word_that_counts_has_its_tag() -> None:
    words = ("no", "hyponatremia", "under", "hydrochlorothiazide")
    part = Part(words, (("O", "B-sign", "O", "B-drug"),), first=1, last=4)
    task = minilm_task()
    (example,) = task.encode([("0:0", part)])
    assert task.tokenizer is not None
    tokens = task.tokenizer.convert_ids_to_tokens(example.features["input_ids"].tolist())
    labelled = {
        token: LABELS[label]
        for token, label in zip(tokens, example.features["labels"], strict=True)
        if label != IGNORE
    }
    assert task.tokenizer is not None
    pieces = [task.tokenizer.tokenize(word) for word in words]
    assert max(map(len, pieces)) > 2
    assert example.length == sum(map(len, pieces)) + 2
    assert labelled == {pieces[1][0]: "B-sign", "under": "O", pieces[3][0]: "B-drug"}
    assert example.weight == 3
    inputs, labels = task.collate([example, example], length=30)
    assert labels.shape == inputs["input_ids"].shape == (2, 30)
    assert (labels != IGNORE).sum() == 6


def test_what_is_cut_off_is_counted() -> None:
    (example,) = minilm_task(max_length=5).encode([("0:0", Part(("hydrochlorothiazide",), (("B-drug",),), 0, 1))])
    tokenizer: Any = minilm_task().tokenizer
    whole = tokenizer("hydrochlorothiazide")["input_ids"]
    assert (example.length, example.num_truncated_tokens) == (5, len(whole) - 5)


class ByWord(nn.Module):
    """Says the same of a word wherever it stands."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(64, num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return SimpleNamespace(logits=self.table(input_ids) * mask[:, :, None])


def iob2(tags: list[str]) -> list[str]:
    """The tags of a text, made anew of what seqeval takes for its entities."""
    anew = ["O"] * len(tags)
    for name, first, last in get_entities(tags):
        anew[first : last + 1] = [f"B-{name}", *[f"I-{name}"] * (last - first)]
    return anew


tokenizers = {kind: tokenizer_of(kind) for kind in KINDS}
TYPES = ("Adverse Event", "B-x", "O")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", ["longest", "each_label"])
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=40) | st.text("ab. é患\u0301\u00ad\u200b", max_size=40), draw=st.randoms())
def test_characters_to_tags_and_back(kind: str, nested: Any, text: str, draw: random.Random) -> None:
    """Of any text, cut into parts anywhere: a model that tags all tokens right finds all entities as annotated."""
    tokenizer = tokenizers[kind]
    cutting = Cutting(tokenizer, draw.randint(1, 9), draw.randint(0, 4), nested, TYPES)
    reader = SpanColumns("text", "entities")
    try:
        places = reader.read({"text": text, "entities": []}, partial(count_tokens, tokenizer)).places
    except BadRow:
        return  # nothing that is seen
    entities: list[dict[str, Any]] = []
    for name in TYPES if nested == "each_label" else [""]:
        cuts = sorted(draw.sample(range(len(places) + 1), draw.randint(0, len(places) + 1)))
        for first, last in itertools.pairwise(cuts):
            if draw.random() < 0.7:
                start, end = places[first][0], places[last - 1][1]
                label = name or draw.choice(TYPES)
                entities.append({"start": start, "end": end, "label": label, "text": text[start:end]})
    draw.shuffle(entities)
    types = TYPES if nested == "each_label" else ()
    task = EntityTagging(
        labels_of(TYPES, in_layers=bool(types)), CrossEntropy(), tokenizer, cutting.most + 2, types=types
    )
    parts = [part_of(row) for row in cutting.parts_of({"text": text, "entities": entities}, reader)]
    examples = task.encode([(f"0:{number}", part) for number, part in enumerate(parts)])
    assert sum(example.weight for example in examples) == len(places) * max(1, len(types))
    (whole,) = whole_texts([task.found(example, example.features["labels"]) for example in examples], MOST_PARTS)
    assert whole.text == text
    assert whole.predicted == whole.truth
    by_place = sorted(entities, key=lambda one: (one["start"], one["end"], one["label"]))
    assert whole.predicted_entities == by_place


def test_layers_are_told_by_the_names_of_the_head() -> None:
    """Whatever their order in it."""
    labels = ("B-sign", "O-drug", "I-drug", "O-sign", "I-sign", "B-drug")
    task = EntityTagging(labels, CrossEntropy(), make_tokenizer(), 64, types=("drug", "sign"))
    part = Part(("w1", "w2", "w3"), (("O", "B-drug", "I-drug"), ("B-sign", "I-sign", "O")), 0, 3)
    (example,) = task.encode([("0:0", part)])
    assert example.weight == 6
    inputs, targets = task.collate([example])
    assert targets[0].tolist() == [[IGNORE] * 2, [0, 1], [1, 2], [2, 0], [IGNORE] * 2]
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 6)
    model: Any = lambda **_: SimpleNamespace(logits=logits)  # noqa: E731
    by_hand = 0.0
    for layer, name in enumerate(("drug", "sign")):
        of_layer = logits[0, 1:4, [labels.index(f"{place}-{name}") for place in "OBI"]]
        by_hand += float(nn.functional.cross_entropy(of_layer, targets[0, 1:4, layer], reduction="sum"))
    assert float(task.summed_loss(model, (inputs, targets))) == pytest.approx(by_hand)
    loss, predicted = task.predict(model, (inputs, targets))
    assert float(loss) == pytest.approx(by_hand)
    found = task.found(example, predicted[0].numpy())
    best = [
        [int(logits[0, place, [labels.index(f"{p}-{name}") for p in "OBI"]].argmax()) for place in (1, 2, 3)]
        for name in ("drug", "sign")
    ]
    assert found.predicted == tuple(
        tuple(("O", f"B-{name}", f"I-{name}")[index] for index in of_layer)
        for name, of_layer in zip(("drug", "sign"), best, strict=True)
    )
    task.check_metrics("overlap_f1")


@pytest.mark.parametrize("max_length", [3, 5, 9, 64])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_entities_are_those_of_whole_texts_wherever_they_are_cut(
    tmp_path: Path, max_length: int, micro_batch_size: int
) -> None:
    """Against seqeval on texts that were never cut, tagged word by word."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda most: int(torch.randint(most, (1,), generator=generator))  # noqa: E731
    rows = [
        {"tokens": [f"w{draw(40)}" for _ in range(length)], "tags": [LABELS[draw(5)] for _ in range(length)]}
        for length in (1 + draw(30) for _ in range(40))
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = make_tokenizer()
    data = open_tagged_texts(
        str(file),
        OneRank(),
        RecipeConfig(max_length=max_length, eval_fraction=0.5),
        tokenizer,
        columns=Columns("tokens", "tags", "text", None),
        group_column=None,
        types=("drug", "sign"),
        overlap=max_length // 2,
    )
    task = EntityTagging(LABELS, CrossEntropy(), tokenizer, max_length)
    stream = WindowStream(
        data.source,
        task.prepare,
        task.encode,
        ranks=OneRank(),
        effective_batch_size=16,
        seed=0,
        skip_weightless=False,
    )
    model = ByWord(len(LABELS))
    cutter = Cutter(WorkingCapacity(Capacity(micro_batch_size)))
    figures = task.evaluate(model, stream, ranks=OneRank(), cutter=cutter)
    by_word = [
        [int(model.table(torch.tensor(tokenizer.convert_tokens_to_ids(word))).argmax()) for word in row["tokens"]]
        for row in rows
    ]
    predicted = [[LABELS[index] for index in of_text] for of_text in by_word]
    truth = [row["tags"] for row in rows]
    assert figures["num_texts"] == 40
    assert figures["num_words"] == sum(map(len, truth))
    assert figures["f1"] == pytest.approx(f1_score(truth, predicted))
    assert figures["precision"] == pytest.approx(precision_score(truth, predicted))
    losses = [
        nn.functional.cross_entropy(
            model.table(torch.tensor(tokenizer.convert_tokens_to_ids(row["tokens"]))),
            torch.tensor([LABELS.index(tag) for tag in iob2(row["tags"])]),
            reduction="sum",
        ).item()
        for row in rows
    ]
    assert figures["loss"] == pytest.approx(sum(losses) / figures["num_words"], rel=1e-5)


def test_an_unknown_best_metric_is_refused() -> None:
    task = minilm_task()
    task.check_metrics("f1")
    with pytest.raises(ValueError, match=r"`best_metric` accuracy: has to be one of f1, loss, macro_f1, overlap_f1"):
        task.check_metrics("accuracy")


def test_the_workload_is_traced() -> None:
    from hf_accum.tuner.prediction import predict
    from hf_accum.tuner.workload import workload_of

    model = AutoModelForTokenClassification.from_config(CONFIGS["bert"])
    work = workload_of(model, EntityTagging(LABELS, CrossEntropy(), None, 16), RecipeConfig())
    training = predict(work).training
    assert training.bytes_at(4, 16) > training.bytes_at(2, 16) > 0


def test_entities_are_found_by_their_words_the_longest_first() -> None:
    words = words_of("Severe heart failure (heart) after digoxin.")
    assert words == ["Severe", "heart", "failure", "(", "heart", ")", "after", "digoxin", "."]
    tags = tags_of(words, {"heart": "anatomy", "Heart failure": "disease", "Digoxin": "drug", "absent": "drug"})
    assert tags == ["O", "B-disease", "I-disease", "O", "B-anatomy", "O", "O", "B-drug", "O"]
