"""What the recipes' results are worth: simple baselines, and the models before training, on the same held-out data.

- clinical_classification: MiniLM with a head that knows nothing yet (simple baselines are in `main_job.py`);
- clinical_ner: a dictionary of the entities in the texts to train on (the longest first, each with its most frequent
  type), and MiniLM with a head that knows nothing yet;
- medical_mlm: the frequencies of the tokens in the texts to train on, and MiniLM as it comes;
- driving_images_segmentation, at 224 pixels: every pixel background, and the net with a head that knows nothing yet
  (those of a class for each image are in `images.py`).

The figures of the recipes themselves are those of their own runs (recipes/README.md has the commands).

    python tests/bench/quality.py clinical_ner --threads 2
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from common import argument_parser, load_minilm, minilm_task, print_header, print_table, use_threads
from held_out import evaluate, rows_of
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from hf_accum.distributed.ranks import OneRank
from hf_accum.evaluation.evaluate import Metric
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.models.trainable import load_trainable
from hf_accum.tasks.language_modeling.token_prediction import perplexity
from hf_accum.tasks.token_classification.data import part_of
from hf_accum.tasks.token_classification.tags import labels_of
from hf_accum.tasks.vision.inputs import load_image_inputs
from recipes import clinical_classification, clinical_ner, driving_images, medical_mlm
from recipes.embedded.efficientnet import efficientnet_lite0
from recipes.embedded.models import minilm

CPU = torch.device("cpu")
Words = Sequence[str]


class Dictionary:
    """The entities of texts to train on, each with the type that it has most often."""

    def __init__(self, texts: Sequence[tuple[Words, Words]]) -> None:
        types: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for words, tags in texts:
            for start, end, name in entities_of(tags):
                types[lower(words[start:end])][name] += 1
        self.types = {words: counts.most_common(1)[0][0] for words, counts in types.items()}
        self.longest = max(map(len, self.types))

    def tag(self, words: Words) -> list[str]:
        """From left to right, the longest entity at each place."""
        tags = ["O"] * len(words)
        start = 0
        while start < len(words):
            lengths = range(min(self.longest, len(words) - start), 0, -1)
            length = next((n for n in lengths if lower(words[start : start + n]) in self.types), 0)
            if length:
                name = self.types[lower(words[start : start + length])]
                tags[start : start + length] = [f"B-{name}", *[f"I-{name}"] * (length - 1)]
            start += max(1, length)
        return tags


def lower(words: Words) -> tuple[str, ...]:
    """In small letters."""
    return tuple(word.lower() for word in words)


def entities_of(tags: Words) -> Iterator[tuple[int, int, str]]:
    """Start, end and type of each entity."""
    start = None
    for place, tag in enumerate([*tags, "O"]):
        if start is not None and not tag.startswith("I-"):
            yield start, place, tags[start][2:]
            start = None
        if tag.startswith("B-"):
            start = place


def of_clinical_classification() -> list[list[str]]:
    """Accuracy and macro-F1."""
    config = clinical_classification.ClinicalClassificationConfig()
    data = clinical_classification.open_data(config, OneRank())
    task = minilm_task(data.labels, config.text_column, config.max_length)
    before = evaluate(load_minilm(task, config.lora, seed=config.seed), task, data, 64)
    names = ["accuracy", "macro_f1", "loss"]
    return [["", *names], ["MiniLM before training", *(f"{before[name]:.3f}" for name in names)]]


def of_clinical_ner() -> list[list[str]]:
    """Entity F1, overall and by type."""
    config = clinical_ner.ClinicalNerConfig()
    tokenizer = load_tokenizer(minilm(), config.trust, of_words=True)
    data = clinical_ner.open_data(config, OneRank(), tokenizer)
    train, held_out = (
        [(list(part.words), list(part.layers[0])) for part in (part_of(row) for _, row in rows_of(data, side))]
        for side in (False, True)
    )
    dictionary = Dictionary(train)
    metric = Metric("entities", {})
    predicted = [dictionary.tag(words) for words, _ in held_out]
    figures = {"dictionary of the training texts": metric.compute(predicted, [tags for _, tags in held_out])}
    labels = labels_of(data.types)
    model = load_trainable(clinical_ner.spec_of(config, labels), tokenizer, config, device=CPU).model
    task = clinical_ner.task_of(config, labels, tokenizer)
    figures["MiniLM before training"] = evaluate(model, task, data, 64)
    print(f"{len(train):,} parts of texts to train on, {len(held_out):,} held out")
    names = [name for name, value in figures["dictionary of the training texts"].items() if isinstance(value, float)]
    return [["", *names], *([who, *(f"{its[name]:.3f}" for name in names)] for who, its in figures.items())]


def of_medical_mlm() -> list[list[str]]:
    """Loss, perplexity and accuracy of masked tokens."""
    config = medical_mlm.MedicalMlmConfig()
    tokenizer = load_tokenizer(minilm(), config.trust)
    data = medical_mlm.open_data(config, OneRank(), tokenizer)
    model = load_trainable(medical_mlm.spec_of(config), tokenizer, config, device=CPU).model
    task = medical_mlm.task_of(config, tokenizer, "no")

    def draw(example: Any, _: int) -> Any:
        return task.draw(example, None)

    counts = Counter(token for _, row in rows_of(data, False) for token in task.prepare(row).tolist())
    number = sum(counts.values()) + len(tokenizer)  # each token once more than it was seen
    (most_frequent, _), *_ = counts.most_common(1)
    hidden = [
        token
        for example_id, row in rows_of(data, True)
        for token in draw(task.encode([(example_id, task.prepare(row))])[0], 0).features["tokens"].tolist()
    ]
    loss = -sum(math.log((counts[token] + 1) / number) for token in hidden) / len(hidden)
    accuracy = sum(token == most_frequent for token in hidden) / len(hidden)
    before = evaluate(model, task, data, 64, draw)
    assert before["num_tokens"] == len(hidden)
    print(f"{len(hidden):,} held-out tokens are hidden")
    return [
        ["", "loss", "perplexity", "accuracy"],
        ["token frequencies", f"{loss:.3f}", f"{perplexity(loss):.1f}", f"{accuracy:.3f}"],
        [
            "MiniLM before training",
            f"{before['loss']:.3f}",
            f"{before['perplexity']:.1f}",
            f"{before['masked_accuracy']:.3f}",
        ],
    ]


class AlwaysTheFirst(nn.Module):
    """A model of pixels that takes each for one of the first class."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(F.one_hot(torch.tensor(0), num_classes).float())

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """Logits, (num_images, height, width, num_classes)."""
        num_images, _, height, width = pixel_values.shape
        return SimpleNamespace(logits=self.logits.expand(num_images, height, width, -1))


def of_driving_images_segmentation() -> list[list[str]]:
    """Mean intersection over union, and the share of pixels that are right."""
    config = driving_images.DrivingImagesConfig(task="segmentation", resolution=224)
    data = driving_images.open_data(config, OneRank())
    inputs, processor = load_image_inputs(
        efficientnet_lite0(), config.resolution, config.max_image_pixels, config.trust
    )
    task, spec = driving_images.task_of(config, inputs, data), driving_images.spec_of(config, data.class_names)
    before = load_trainable(spec, processor, config, device=CPU).model
    rows = [["", "mean IoU", "pixels that are right", "images"]]
    for who, model in (
        ("every pixel background", AlwaysTheFirst(len(data.class_names))),
        ("the net before training", before),
    ):
        its = evaluate(model, task, data, 8, lambda example, _: task.draw(example, None))
        rows.append(
            [who, *(f"{its[name]:.3f}" for name in ("mean_iou", "overall_accuracy")), f"{its['num_examples']}"]
        )
    return rows


RECIPES = {
    "clinical_classification": of_clinical_classification,
    "clinical_ner": of_clinical_ner,
    "medical_mlm": of_medical_mlm,
    "driving_images_segmentation": of_driving_images_segmentation,
}


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("recipe", choices=tuple(RECIPES))
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    transformers_logging.set_verbosity_error()
    columns, *rows = RECIPES[arguments.recipe]()
    print()
    print_table(columns, rows)


if __name__ == "__main__":
    main()
