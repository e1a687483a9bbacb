"""Token classification: parts of texts to examples, examples to a batch, tags of words to entities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import TOKENS, Example, Lengths
from hf_accum.accumulation.losses import IGNORE, Objective
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import Row
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.evaluation.evaluate import check_best_metric
from hf_accum.evaluation.judge import group_of
from hf_accum.evaluation.records import place_in
from hf_accum.evaluation.run_over import run_over
from hf_accum.models.usage import Usage
from hf_accum.tasks.preview import Line, decoded, words_with_tags
from hf_accum.tasks.token_classification.data import MOST_PARTS, Part, part_of
from hf_accum.tasks.token_classification.found import (
    FoundPart,
    FoundText,
    figures_of,
    whole_texts,
    with_each_text,
)
from hf_accum.tasks.token_classification.tags import OUTSIDE, Tags, labels_of
from hf_accum.tasks.tokenization import made_up_inputs, pad, padding_of, tokenize_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = tuple[Mapping[str, Tensor], Tensor]
"""The model's inputs, and the labels of tokens."""


@dataclass(frozen=True)
class EntityTagging:
    """A tag for each word, by the logits at its first token; other tokens and words of context count for nothing.

    With `types` each of them has a layer of tags: a word has as many labels, each one of O, B and I, and weighs as
    much as these.
    """

    labels: Tags
    """In the order of the model's head."""
    objective: Objective
    tokenizer: "PreTrainedTokenizerBase | None"
    """None: for a plan, which has no texts."""
    max_length: int
    types: Tags = ()
    overlap: int = 0
    """Tokens that the parts of a longer text share."""
    lengths: Lengths = field(default=TOKENS, init=False)
    num_parts: int = field(default=1, init=False)

    @property
    def _layers(self) -> tuple[Tags, ...]:
        """The labels of each layer by name."""
        return tuple(labels_of((name,), in_layers=True) for name in self.types) or (self.labels,)

    def usage(self) -> Usage:
        """How the model is used."""
        return Usage(
            task="token-classification",
            auto_class="AutoModelForTokenClassification",
            max_length=self.max_length,
            overlap=self.overlap,
            layers=self.types,
        )

    def prepare(self, row: Row) -> Part:
        """The part of a text that a row is."""
        return part_of(row)

    def encode(self, rows: Sequence[tuple[str, Part]]) -> list[Example]:
        """Tokenise (id, part) rows."""
        assert self.tokenizer is not None
        tokens = tokenize_words(self.tokenizer, [part.words for _, part in rows], self.max_length)
        examples = []
        for (example_id, part), (ids, places, num_truncated) in zip(rows, tokens, strict=True):
            # A word without any token (a control character) has no place to be told from: it counts as outside.
            labels = np.full((len(ids), len(part.layers)), IGNORE, dtype=np.int64)
            counted = [(place, word) for word, place in places.items() if part.first <= word < part.last]
            for layer, (tags, names) in enumerate(zip(part.layers, self._layers, strict=True)):
                index = {_tag_of(name): number for number, name in enumerate(names)}
                for place, word in counted:
                    labels[place, layer] = index[tags[word]]
            labels = labels if self.types else labels[:, 0]
            weight = self.objective.weight(torch.from_numpy(labels))
            features = {"input_ids": ids, "labels": labels, "part": part, "counted": counted}
            examples.append(Example(example_id, len(ids), weight, features, num_truncated))
        return examples

    def preview(self, example: Example) -> list[Line]:
        """The tokens as the model sees them, and the words with their tags."""
        part: Part = example.features["part"]
        words = words_with_tags(part.words, list(zip(*part.layers, strict=True)), part.first, part.last, OUTSIDE)
        return [("text", decoded(self.tokenizer, example.features["input_ids"])), *words]

    def collate(self, examples: Sequence[Example], length: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs and the labels, (num_examples, length) each, on the CPU; as `pad` does.

        With layers the labels are (num_examples, length, num_layers).
        """
        inputs = pad(examples, padding_of(self.tokenizer), length)
        labels = self._labels_like(inputs["input_ids"], IGNORE)
        for row, example in enumerate(examples):
            labels[row, : example.length] = torch.from_numpy(example.features["labels"])
        return inputs, labels

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the words that count, summed, in float32."""
        inputs, labels = batch
        return self.objective(self._by_layer(model(**inputs).logits), labels)

    def predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss, and the predicted labels of all tokens, in the shape of the labels."""
        inputs, labels = batch
        logits = self._by_layer(model(**inputs).logits)
        return self.objective(logits, labels), logits.argmax(-1)

    def _by_layer(self, logits: Tensor) -> Tensor:
        """The logits of the labels of each layer, in the order of `_layers`."""
        if not self.types:
            return logits
        order = [self.labels.index(name) for names in self._layers for name in names]
        if order != list(range(len(order))):
            logits = logits[..., order]
        return logits.unflatten(-1, (len(self.types), -1))

    def _labels_like(self, tokens: Tensor, label: int) -> Tensor:
        shape = (*tokens.shape, len(self.types)) if self.types else tokens.shape
        return torch.full(shape, label, device=tokens.device)

    def dummy_batch(self, model: nn.Module, num_examples: int, length: int, device: torch.device) -> Batch:
        """Texts of nothing, each token with a label."""
        inputs = made_up_inputs(model, num_examples, length, device)
        return inputs, self._labels_like(inputs["input_ids"], 0)

    def check_metrics(self, best_metric: str | None) -> None:
        """Compute the metrics once, before the training that needs them.

        Raises:
            UserError: if seqeval is not installed, or there is no figure `best_metric`.
        """
        tags = tuple(tuple(map(_tag_of, names)) for names in self._layers)
        places = tuple((number, number + 1) for number in range(max(map(len, tags))))
        check_best_metric(best_metric, figures_of([FoundText("0:0", "x" * len(places), places, tags, tags)]))

    def show(self, example: Example) -> dict[str, Any]:
        """The text of a part."""
        return {"text": example.features["part"].text}

    def evaluate(
        self,
        model: nn.Module,
        held_out: WindowStream[Part],
        *,
        ranks: Ranks,
        cutter: Cutter,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """The loss, and the entities of whole texts: each word counts once, wherever texts were cut.

        With a folder also 95 % intervals, and in the folder each text with its entities and those predicted.
        """
        device = next(model.parameters()).device

        def forward(examples: Sequence[Example], length: int) -> tuple[float, list[FoundPart]]:
            inputs, labels = to_device(self.collate(examples, length), device)
            logits = self._by_layer(model(**inputs).logits)
            rows, losses = logits.argmax(-1).cpu().numpy(), [0.0] * len(examples)
            if folder is not None:
                parts = zip(logits.split(1), labels.split(1), strict=True)
                losses = [float(self.objective(*part)) for part in parts]
            found = zip(examples, rows, losses, strict=True)
            return float(self.objective(logits, labels)), [self.found(*of_one) for of_one in found]

        results, weight = run_over(model, held_out, forward, cutter)
        everyone = ranks.gather_objects(results)

        def compute() -> dict[str, Any]:
            texts = whole_texts(
                (part for of_rank in everyone for _, of_batch in of_rank for part in of_batch), MOST_PARTS
            )
            loss = sum(loss for of_rank in everyone for loss, _ in of_rank) / weight
            num_words = sum(len(text.places) for text in texts)
            figures = {"num_texts": len(texts), "num_words": num_words, "loss": loss} | figures_of(texts)
            if folder is None:
                return figures
            return with_each_text(figures, texts, folder, place_in(held_out.source.names))

        return on_rank_0(ranks, compute)

    def found(self, example: Example, predicted: np.ndarray, loss: float = 0.0) -> FoundPart:
        """What the labels of an example's tokens, (length,) or (length, num_layers), say of its words that count;
        with the example's loss.
        """
        part: Part = example.features["part"]
        layers: list[Tags] = []
        for labels, names in zip(predicted.reshape(len(predicted), -1).T, self._layers, strict=True):
            tags = dict.fromkeys(range(part.first, part.last), OUTSIDE)
            tags |= {word: _tag_of(names[labels[place]]) for place, word in example.features["counted"]}
            layers.append(tuple(tags.values()))
        truth = tuple(tags[part.first : part.last] for tags in part.layers)
        return FoundPart(
            example.id,
            part.start,
            part.text,
            part.places,
            tuple(layers),
            truth,
            loss,
            example.weight,
            group_of(example),
        )


def _tag_of(label: str) -> str:
    """O of a layer has the layer's type behind it."""
    return OUTSIDE if label.startswith("O-") else label
