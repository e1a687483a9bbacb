"""Tagging: which token stands for a word, and entities that do not depend on where texts are cut."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from seqeval.metrics import f1_score, precision_score
from seqeval.metrics.sequence_labeling import get_entities
from tiny import CONFIGS, make_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, AutoTokenizer

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.losses import IGNORE, CrossEntropy
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.token_classification.data import Part, open_tagged_texts
from hf_accum.tasks.token_classification.files import Columns
from hf_accum.tasks.token_classification.tags import labels_of
from hf_accum.tasks.token_classification.task import EntityTagging
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
