"""What else is to be had on the main job's data: accuracy and macro-F1 on the recipe's own held-out split.

- the majority class of the training rows;
- TF-IDF of words and pairs of words, with logistic regression, with and without balanced class weights;
- with `--hand_loop`, the recipe's model and settings by a loop in plain torch: no stream, no window, no
  accelerate. It starts from the same weights as a recipe's run of the same seed; its order of examples is
  another.

Flags that are not listed below are those of `recipes.clinical_classification`, with the same meaning and
defaults: `--learning_rate`, `--num_epochs`, `--effective_batch_size`, `--lora.rank`, `--class_weights`,
`--dropout`, `--seed` and so on. Of the ones that are about evaluation, logging and checkpoints along the
way the hand loop knows nothing.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    RecipeData,
    argument_parser,
    load_minilm,
    load_recipe_data,
    minilm_task,
    print_header,
    print_table,
    use_threads,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from transformers import get_scheduler

from hf_accum.cli.exit import run
from hf_accum.cli.parser import parse
from hf_accum.config.validation import require
from hf_accum.run.schedule import count_steps
from recipes.clinical_classification import ClinicalClassificationConfig

T = TypeVar("T")


MICRO_BATCH_SIZE = 8  # of the hand-written loop; no size changes its gradient


@dataclass(frozen=True)
class Result:
    """How a classifier does on the held-out rows."""

    name: str
    accuracy: float
    macro_f1: float
    seconds: float


def scored(name: str, data: RecipeData, classify: Callable[[], Sequence[int]]) -> Result:
    """Train and predict, timed, and compare with the held-out classes."""
    started = time.perf_counter()
    predictions = classify()
    seconds = time.perf_counter() - started
    truth = data.classes(data.held_out)
    macro_f1 = f1_score(
        truth,
        predictions,
        average="macro",
        zero_division=0,  # type: ignore[arg-type]
    )
    return Result(name, float(accuracy_score(truth, predictions)), float(macro_f1), seconds)


def majority_class(data: RecipeData) -> list[int]:
    """The most frequent class in training, for every held-out row."""
    return [int(np.bincount(data.classes(data.train)).argmax())] * len(data.held_out)


def tf_idf(data: RecipeData, class_weight: str | None) -> list[int]:
    """Logistic regression on words and pairs of words."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform(data.texts(data.train))
    classifier = LogisticRegression(C=10.0, class_weight=class_weight, max_iter=2_000)
    classifier.fit(features, data.classes(data.train))
    return list(map(int, classifier.predict(vectorizer.transform(data.texts(data.held_out)))))


# The hand-written loop


@dataclass(frozen=True)
class Tokens:
    """A text as token ids, and its class."""

    ids: list[int]
    label: int


def hand_loop(data: RecipeData, config: ClinicalClassificationConfig, *, use_bf16: bool) -> list[int]:
    """Train MiniLM by a loop in plain torch, and predict the held-out rows."""
    task = minilm_task(data.labels, data.text_column, config.max_length)
    model = load_minilm(task, config.lora, seed=config.seed, dropout=config.dropout)
    tokenizer: Any = task.tokenizer

    def tokenized(texts: Sequence[str], classes: Sequence[int]) -> list[Tokens]:
        encoded = tokenizer(list(texts), truncation=True, max_length=config.max_length)["input_ids"]
        return [Tokens(ids, label) for ids, label in zip(encoded, classes, strict=True)]

    train = tokenized(data.texts(data.train), data.classes(data.train))
    held_out = tokenized(data.texts(data.held_out), data.classes(data.held_out))

    def forward(texts: Sequence[Tokens]) -> Tensor:
        longest = max(len(text.ids) for text in texts)
        input_ids = torch.zeros(len(texts), longest, dtype=torch.long)  # MiniLM pads by 0
        attention_mask = torch.zeros_like(input_ids)
        for row, text in enumerate(texts):
            input_ids[row, : len(text.ids)] = torch.tensor(text.ids)
            attention_mask[row, : len(text.ids)] = 1
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16):
            return model(input_ids=input_ids, attention_mask=attention_mask).logits.float()

    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.peak_learning_rate)
    num_steps = count_steps(len(train), config.effective_batch_size, config.num_epochs, config.max_steps)
    num_warmup_steps = round(config.warmup_ratio * num_steps)
    scheduler = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps, num_steps)
    weights = class_weights(config, data)

    torch.manual_seed(config.seed)
    model.train()
    started, loss_total = time.perf_counter(), 0.0
    for step, window in zip(range(1, num_steps + 1), _windows(train, config), strict=False):
        window_weight = sum(float(weights[text.label]) for text in window)
        window.sort(key=lambda text: -len(text.ids))
        for micro_batch in _pieces(window, MICRO_BATCH_SIZE):
            labels = torch.tensor([text.label for text in micro_batch])
            loss = F.cross_entropy(
                forward(micro_batch), labels, weights, reduction="sum", label_smoothing=config.label_smoothing or 0.0
            )
            (loss / window_weight).backward()
            loss_total += loss.item() / window_weight
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == num_steps:
            seconds = time.perf_counter() - started
            print(
                f"step {step}/{num_steps}  mean loss so far {loss_total / step:.4f}  {seconds:.0f} s",
                flush=True,
            )

    model.eval()
    by_length = sorted(range(len(held_out)), key=lambda index: len(held_out[index].ids))
    predictions = [0] * len(held_out)
    with torch.inference_mode():
        for piece in _pieces(by_length, MICRO_BATCH_SIZE):
            for index, prediction in zip(piece, forward([held_out[i] for i in piece]).argmax(-1), strict=True):
                predictions[index] = int(prediction)
    return predictions


def class_weights(config: ClinicalClassificationConfig, data: RecipeData) -> Tensor:
    """The weight of each class in the loss, as the recipe's flag says."""
    num_classes = len(data.labels.names)
    if isinstance(config.class_weights, list):
        return torch.tensor(config.class_weights)
    if config.class_weights == "none":
        return torch.ones(num_classes)
    counts = torch.bincount(torch.tensor(data.classes(data.train)), minlength=num_classes)
    balanced = counts.sum() / (num_classes * counts)
    return balanced.sqrt() if config.class_weights == "sqrt_balanced" else balanced


def _windows(texts: Sequence[Tokens], config: ClinicalClassificationConfig) -> Iterator[list[Tokens]]:
    rng = random.Random(config.seed)
    while True:
        yield from _pieces(rng.sample(texts, len(texts)), config.effective_batch_size)


def _pieces(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def measure(config: ClinicalClassificationConfig, arguments: argparse.Namespace) -> None:
    """Measure what was asked for, and print the table.

    Raises:
        ValueError: for a flag of the recipe that means something else than what is measured here.
    """
    require(config.problem == "single_label_classification", "problem", config.problem, "left out here")
    require(config.model is None, "model", config.model, "left out here: it is MiniLM")
    require(config.gradient_checkpointing is not True, "gradient_checkpointing", True, "left out here")
    use_threads(arguments.threads)
    print_header(arguments.threads)
    data = load_recipe_data(config)
    print(f"{len(data.train):,} rows to train on, {len(data.held_out):,} held out\n", flush=True)
    if arguments.hand_loop:
        results = [scored("hand loop", data, lambda: hand_loop(data, config, use_bf16=arguments.bf16))]
        print()
    else:
        results = [
            scored("majority class", data, lambda: majority_class(data)),
            scored("TF-IDF + logistic regression", data, lambda: tf_idf(data, None)),
            scored("the same, balanced", data, lambda: tf_idf(data, "balanced")),
        ]
    print_table(
        ("classifier", "accuracy", "macro-F1", "seconds"),
        [(r.name, f"{r.accuracy:.4f}", f"{r.macro_f1:.4f}", f"{r.seconds:.0f}") for r in results],
    )


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--hand_loop", action="store_true", help="only the hand-written loop")
    parser.add_argument("--bf16", action="store_true", help="autocast of the hand-written loop")
    arguments, of_recipe = parser.parse_known_args()
    config = parse(ClinicalClassificationConfig, __doc__ or "", of_recipe)
    config = replace(config, dataset=config.dataset or "embedded:synopses")
    run(lambda: measure(config, arguments))


if __name__ == "__main__":
    main()
