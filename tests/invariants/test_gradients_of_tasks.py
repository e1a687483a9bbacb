"""Pairs, tags and masked texts as their recipes train them: the gradient of the window, from texts to micro-batches.

The oracle reads the texts one by one, without padding, and adds up torch's own losses of what counts.
"""

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import CONFIGS, WORDS, make_pair_tokenizer, make_tokenizer
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification
from window_cases import assert_window_has_gradient_of

from hf_accum.accumulation.losses import IGNORE, CrossEntropy
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.language_modeling.chunked_loss import (
    ChunkedCrossEntropy,
    stop_before_output_layer,
    with_output_layer,
)
from hf_accum.tasks.masked_lm.task import MaskedTexts
from hf_accum.tasks.special_tokens import Frame
from hf_accum.tasks.text_classification.pairs import read_pairs
from hf_accum.tasks.text_classification.task import TextClassification, build_objective
from hf_accum.tasks.token_classification.data import Part
from hf_accum.tasks.token_classification.tags import labels_of
from hf_accum.tasks.token_classification.task import EntityTagging

any_cut = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
cut = given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    micro_batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)


@any_cut
@cut
def test_entities(accelerator: Accelerator, lengths: list[int], micro_batch_size: int, seed: int) -> None:
    draw = random.Random(seed)
    labels = labels_of(("drug", "sign"))
    torch.manual_seed(0)
    model: Any = AutoModelForTokenClassification.from_config(CONFIGS["bert"]).double().eval()
    model.classifier, model.num_labels = torch.nn.Linear(model.config.hidden_size, len(labels)).double(), len(labels)
    task = EntityTagging(labels, CrossEntropy(), make_tokenizer(), 64)
    parts = []
    for length in lengths:
        first = draw.randrange(length)  # words before it are read, and count in another part
        tags = tuple(draw.choices(labels, k=length))
        parts.append(Part(tuple(draw.choices(WORDS, k=length)), (tags,), first, draw.randint(first + 1, length)))
    examples = task.encode([(f"0:{index}", part) for index, part in enumerate(parts)])
    assert sum(example.weight for example in examples) == sum(part.last - part.first for part in parts)
    losses = []
    for example in examples:
        ids = torch.from_numpy(np.asarray(example.features["input_ids"], dtype=np.int64))[None]
        targets = torch.from_numpy(np.asarray(example.features["labels"], dtype=np.int64))
        logits = model(input_ids=ids).logits[0]
        losses.append(F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum"))
    mean = torch.stack(losses).sum() / sum(example.weight for example in examples)
    assert_window_has_gradient_of(mean, accelerator, model, task, examples, micro_batch_size)


@any_cut
@cut
def test_nested_entities(accelerator: Accelerator, lengths: list[int], micro_batch_size: int, seed: int) -> None:
    """A layer of O, B and I for each type: a word has as many labels, and weighs as much."""
    draw = random.Random(seed)
    types = ("drug", "sign", "dose")
    labels = tuple(draw.sample(labels_of(types, in_layers=True), 9))
    torch.manual_seed(0)
    model: Any = AutoModelForTokenClassification.from_config(CONFIGS["bert"]).double().eval()
    model.classifier, model.num_labels = torch.nn.Linear(model.config.hidden_size, len(labels)).double(), len(labels)
    task = EntityTagging(labels, CrossEntropy(), make_tokenizer(), 64, types=types)
    parts = []
    for length in lengths:
        first = draw.randrange(length)
        layers = tuple(tuple(draw.choices(["O", f"B-{name}", f"I-{name}"], k=length)) for name in types)
        parts.append(Part(tuple(draw.choices(WORDS, k=length)), layers, first, draw.randint(first + 1, length)))
    examples = task.encode([(f"0:{index}", part) for index, part in enumerate(parts)])
    losses = []
    for example, part in zip(examples, parts, strict=True):
        ids = torch.from_numpy(np.asarray(example.features["input_ids"], dtype=np.int64))[None]
        logits = model(input_ids=ids).logits[0, 1 + part.first : 1 + part.last]
        for name, tags in zip(types, part.layers, strict=True):
            places = {f"{place}-{name}": labels.index(f"{place}-{name}") for place in "OBI"}
            scores = logits[:, list(places.values())]  # of one layer: relative to each other
            targets = [list(places).index(f"O-{name}" if tag == "O" else tag) for tag in tags[part.first : part.last]]
            losses.append(F.cross_entropy(scores, torch.tensor(targets), reduction="sum"))
    num_decisions = sum(part.last - part.first for part in parts) * len(types)
    assert sum(example.weight for example in examples) == num_decisions
    mean = torch.stack(losses).sum() / num_decisions
    assert_window_has_gradient_of(mean, accelerator, model, task, examples, micro_batch_size)


@any_cut
@cut
def test_hidden_tokens(accelerator: Accelerator, lengths: list[int], micro_batch_size: int, seed: int) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForMaskedLM.from_config(CONFIGS["bert"]).double().eval()
    tokenizer = make_tokenizer(mask_token=True)
    stop_before_output_layer(model)
    task = MaskedTexts(tokenizer, ChunkedCrossEntropy(chunk_size=3), 64, seed, 0.4)
    random_ids = np.random.default_rng(seed)
    texts = [random_ids.integers(4, len(tokenizer), size=length).astype(np.int32) for length in lengths]
    examples = [task.draw(example, 0) for example in task.encode([(f"0:{i}", text) for i, text in enumerate(texts)])]
    num_before = len(Frame.of(tokenizer).before)
    losses = []
    with with_output_layer(model):
        for text, example in zip(texts, examples, strict=True):
            ids = torch.from_numpy(example.features["input_ids"].astype(np.int64))
            places = torch.from_numpy(example.features["places"])
            right = torch.from_numpy(text.astype(np.int64))[places - num_before]
            logits = model(input_ids=ids[None]).logits[0, places]
            losses.append(F.cross_entropy(logits, right, reduction="sum"))
    mean = torch.stack(losses).sum() / sum(example.weight for example in examples)
    assert_window_has_gradient_of(mean, accelerator, model, task, examples, micro_batch_size)


@any_cut
@cut
def test_pairs_of_texts(accelerator: Accelerator, lengths: list[int], micro_batch_size: int, seed: int) -> None:
    """The oracle takes all pairs in one batch as the tokenizer itself makes it, with its token types."""
    draw = random.Random(seed)
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(CONFIGS["bert"]).double().eval()
    tokenizer, column = make_pair_tokenizer(), LabelColumn("label", "single_label_classification", ("no", "yes"))
    read_pairs(tokenizer, model, 14)
    task = TextClassification("a", column, build_objective(column), tokenizer, 14, pair_column="b")
    firsts = [" ".join(draw.choices(WORDS, k=length)) for length in lengths]
    seconds = [" ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in lengths]
    labels = [draw.randrange(2) for _ in lengths]
    rows = [
        {"a": a, "b": b, "label": column.names[label]} for a, b, label in zip(firsts, seconds, labels, strict=True)
    ]
    examples = task.encode([(f"0:{index}", task.prepare(row)) for index, row in enumerate(rows)])
    whole = tokenizer(firsts, seconds, padding=True, truncation="longest_first", max_length=14, return_tensors="pt")
    assert int(whole["token_type_ids"].max()) == 1
    mean = F.cross_entropy(model(**whole).logits, torch.tensor(labels))
    assert_window_has_gradient_of(mean, accelerator, model, task, examples, micro_batch_size)
