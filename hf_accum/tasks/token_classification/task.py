"""Token classification: parts of texts to examples, examples to a batch, tags of words to entities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from hf_accum.evaluation.evaluate import Metric, check_best_metric, run_over
from hf_accum.tasks.token_classification.data import MOST_PARTS, OUTSIDE, Part, TagColumns
from hf_accum.tasks.tokenization import made_up_inputs, pad, padding_of, tokenize_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tags = tuple[str, ...]
Batch = tuple[Mapping[str, Tensor], Tensor]
"""The model's inputs, and the labels of tokens."""
_Found = tuple[int, int, Tags, Tags]
"""Shard and number of a part of a text; the predicted and the true tags of its words that count."""


@dataclass(frozen=True)
class EntityTagging:
    """A tag for each word, by the logits at its first token; other tokens and words of context count for nothing."""

    columns: TagColumns
    labels: Tags
    objective: Objective
    tokenizer: "PreTrainedTokenizerBase | None"
    """None: for a plan, which has no texts."""
    max_length: int
    lengths: Lengths = field(default=TOKENS, init=False)
    num_parts: int = field(default=1, init=False)

    def prepare(self, row: Row) -> Part:
        """A part of a text.

        Raises:
            BadRow: if its words or tags cannot be used.
        """
        words, tags = self.columns.read(row)
        return Part(tuple(words), tuple(tags), row["first"], row["last"])

    def encode(self, rows: Sequence[tuple[str, Part]]) -> list[Example]:
        """Tokenise (id, part) rows."""
        assert self.tokenizer is not None
        tokens = tokenize_words(self.tokenizer, [part.words for _, part in rows], self.max_length)
        examples = []
        for (example_id, part), (ids, places, num_truncated) in zip(rows, tokens, strict=True):
            # A word without any token (a control character) has no place to be told from: it counts as outside.
            labels = np.full(len(ids), IGNORE, dtype=np.int64)
            counted = [(place, word) for word, place in places.items() if part.first <= word < part.last]
            for place, word in counted:
                labels[place] = self.labels.index(part.tags[word])
            weight = self.objective.weight(torch.from_numpy(labels))
            features = {"input_ids": ids, "labels": labels, "part": part, "counted": counted}
            examples.append(Example(example_id, len(ids), weight, features, num_truncated))
        return examples

    def collate(self, examples: Sequence[Example], length: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs and the labels, (num_examples, length) each, on the CPU; as `pad` does."""
        inputs = pad(examples, padding_of(self.tokenizer), length)
        labels = torch.full(inputs["input_ids"].shape, IGNORE)
        for row, example in enumerate(examples):
            labels[row, : example.length] = torch.from_numpy(example.features["labels"])
        return inputs, labels

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the words that count, summed, in float32."""
        inputs, labels = batch
        return self.objective(model(**inputs).logits, labels)

    def predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss, and the predicted labels of all tokens, (num_examples, length)."""
        inputs, labels = batch
        logits = model(**inputs).logits
        return self.objective(logits, labels), logits.argmax(-1)

    def dummy_batch(self, model: nn.Module, num_examples: int, length: int, device: torch.device) -> Batch:
        """Texts of nothing, each token with a label."""
        inputs = made_up_inputs(model, num_examples, length, device)
        return inputs, torch.zeros_like(inputs["input_ids"])

    def check_metrics(self, best_metric: str | None) -> None:
        """Compute the metrics once, before the training that needs them.

        Raises:
            UserError: if seqeval is not installed, or there is no figure `best_metric`.
        """
        check_best_metric(best_metric, _METRIC.compute([list(self.labels)], [list(self.labels)]))

    def evaluate(
        self, model: nn.Module, held_out: WindowStream[Part], *, ranks: Ranks, cutter: Cutter
    ) -> dict[str, Any]:
        """The loss, and the entities of whole texts: each word counts once, wherever texts were cut."""
        device = next(model.parameters()).device

        def forward(examples: Sequence[Example], length: int) -> tuple[float, list[_Found]]:
            loss, labels = self.predict(model, to_device(self.collate(examples, length), device))
            rows = labels.cpu().numpy()
            return float(loss), [self._found(example, row) for example, row in zip(examples, rows, strict=True)]

        results, weight = run_over(model, held_out, forward, cutter)
        everyone = ranks.gather_objects(results)

        def compute() -> dict[str, Any]:
            parts = sorted(part for of_rank in everyone for _, of_batch in of_rank for part in of_batch)
            texts: dict[tuple[int, int], tuple[list[str], list[str]]] = {}
            for shard, number, predicted, truth in parts:
                whole = texts.setdefault((shard, number // MOST_PARTS), ([], []))
                whole[0].extend(predicted)
                whole[1].extend(truth)
            predictions, references = zip(*texts.values(), strict=True)
            loss = sum(loss for of_rank in everyone for loss, _ in of_rank) / weight
            figures = {"num_texts": len(texts), "num_words": sum(map(len, references)), "loss": loss}
            return figures | _METRIC.compute(list(predictions), list(references))

        return on_rank_0(ranks, compute)

    def _found(self, example: Example, predicted: np.ndarray) -> "_Found":
        part: Part = example.features["part"]
        tags = dict.fromkeys(range(part.first, part.last), OUTSIDE)
        tags |= {word: self.labels[predicted[place]] for place, word in example.features["counted"]}
        shard, number = map(int, example.id.split(":"))
        return shard, number, tuple(tags.values()), part.tags[part.first : part.last]


_METRIC = Metric("entities", {})
