"""Retrieval of texts by texts: rows to pairs, pairs to batches of texts, texts to vectors, vectors to ranks.

Documents of the same tokens are one: a model could not tell them apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import TOKENS, Example, Lengths
from hf_accum.accumulation.grad_cache import InBatchNegatives
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.evaluation.bootstrap import Weighted, with_intervals
from hf_accum.evaluation.evaluate import check_best_metric
from hf_accum.evaluation.judge import Each, Judged, group_of, judged_of
from hf_accum.evaluation.records import place_in, write_records
from hf_accum.evaluation.run_over import run_over
from hf_accum.evaluation.weighted import mean
from hf_accum.models.pooling import Pooling
from hf_accum.models.usage import Usage
from hf_accum.tasks.preview import Line, decoded
from hf_accum.tasks.tokenization import made_up_inputs, pad, padding_of, text_of, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pair = tuple[str, str]
"""A query and its document."""
_RECALLS = (1, 5, 10)
_QUERY, _DOCUMENT = ":query", ":document"
Encoded = tuple[str, int | None, np.ndarray]
"""Of a text: its id, the key of a document, its vector."""


def encode_texts(model: nn.Module, inputs: Mapping[str, Tensor], pooling: Pooling) -> Tensor:
    """A vector for each text, (num_texts, width): the mean of its tokens' last states, or that of one token."""
    states = model(**inputs).last_hidden_state
    if pooling == "cls":
        return states[:, 0]
    mask = inputs.get("attention_mask")
    if mask is None:  # nothing is padded
        return states.mean(1) if pooling == "mean" else states[:, -1]
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)
    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


@dataclass(frozen=True)
class TextRetrieval:
    """Which document belongs to a query: texts of two columns, encoded by one model."""

    query_column: str
    document_column: str
    tokenizer: "PreTrainedTokenizerBase | None"
    """None: for a plan, which has no texts."""
    objective: InBatchNegatives
    max_length: int
    pooling: Pooling = "mean"
    lengths: Lengths = field(default=TOKENS, init=False)
    num_parts: int = field(default=2, init=False)
    """The two texts of a pair."""

    def usage(self) -> Usage:
        """How the model is used."""
        how = {"max_length": self.max_length, "pooling": self.pooling}
        return Usage(task="sentence-similarity", auto_class="AutoModel", **how)

    def prepare(self, row: Mapping[str, Any]) -> Pair:
        """A row's two texts.

        Raises:
            BadRow: if either is missing or cannot be used.
        """
        return text_of(row, self.query_column), text_of(row, self.document_column)

    def encode(self, rows: Sequence[tuple[str, Pair]]) -> list[Example]:
        """Tokenise (id, pair) rows."""
        texts = [text for _, pair in rows for text in pair]
        assert self.tokenizer is not None
        tokens = tokenize(self.tokenizer, texts, self.max_length)
        examples = []
        for index, (example_id, _) in enumerate(rows):
            query, of_document = tokens[2 * index : 2 * index + 2]
            parts = (
                Example(example_id + _QUERY, len(query[0]), 1.0, {"input_ids": query[0]}),
                Example(
                    example_id + _DOCUMENT,
                    len(of_document[0]),
                    1.0,
                    {"input_ids": of_document[0], "key": _key(of_document[0])},
                ),
            )
            length = sum(part.length for part in parts)
            examples.append(Example(example_id, length, 1.0, {}, query[1] + of_document[1], parts))
        return examples

    def preview(self, example: Example) -> list[Line]:
        """Both texts as the model sees them."""
        texts = [decoded(self.tokenizer, part.features["input_ids"]) for part in example.parts]
        return list(zip(("query", "document"), texts, strict=True))

    def collate(self, examples: Sequence[Example], length: int | None = None) -> dict[str, Tensor]:
        """The model's inputs, (num_texts, length) each, on the CPU; as `pad` does."""
        return pad(examples, padding_of(self.tokenizer), length)

    def vectors(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """As `encode_texts` does."""
        return encode_texts(model, inputs, self.pooling)

    def summed_loss(self, model: nn.Module, batch: tuple[Mapping[str, Tensor], Tensor]) -> Tensor:
        """What has the gradient of the contrastive loss, of texts and its gradient by their vectors: the product.

        It takes more memory than the no-grad pass before it.
        """
        inputs, gradient = batch
        return (self.vectors(model, inputs) * gradient).sum()

    def predict(self, model: nn.Module, batch: tuple[Mapping[str, Tensor], Tensor | None]) -> Tensor:
        """The vectors of texts, (num_texts, width), in float32 at least."""
        inputs, _ = batch
        vectors = self.vectors(model, inputs)
        return vectors if vectors.dtype == torch.float64 else vectors.float()

    def dummy_batch(
        self, model: nn.Module, num_examples: int, length: int, device: torch.device
    ) -> tuple[Mapping[str, Tensor], Tensor]:
        """Texts of nothing, and a gradient for each value of their vectors."""
        width = int(model.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
        return made_up_inputs(model, num_examples, length, device), torch.ones(num_examples, width, device=device)

    @staticmethod
    def check_metrics(best_metric: str | None) -> None:
        """Refuse a metric that an evaluation has no figure of.

        Raises:
            UserError: naming those that it has.
        """
        check_best_metric(best_metric, {"mrr": 0.0} | {f"recall_at_{k}": 0.0 for k in _RECALLS})

    def show(self, example: Example) -> dict[str, Any]:
        """Both texts of a pair."""
        assert example.origin is not None
        return dict(zip(("query", "document"), example.origin.row, strict=True))

    def evaluate(
        self,
        model: nn.Module,
        held_out: WindowStream[Pair],
        *,
        ranks: Ranks,
        cutter: Cutter,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """Each query's document among all held-out documents, each of which counts once: the mean loss, the mean of
        the reciprocal ranks, and the shares of queries whose document is among the first k. A collective.

        Of documents that score alike the right one comes last. With a folder also 95 % intervals, of queries that are
        drawn anew among the same documents, and in the folder each pair with the place at which it was found.
        """
        device = next(model.parameters()).device

        def forward(texts: Sequence[Example], length: int) -> list[Encoded]:
            vectors = self.predict(model, (to_device(self.collate(texts, length), device), None))
            keys = [text.features.get("key") for text in texts]
            return list(zip([text.id for text in texts], keys, vectors.cpu().numpy(), strict=True))

        of_pairs: dict[str, tuple[int, dict[str, Any]]] = {}

        def join(pairs: Sequence[Example], texts: list[list[Encoded]]) -> list[Encoded]:
            if folder is not None:
                of_pairs.update((pair.id, (group_of(pair), self.show(pair))) for pair in pairs)
            return [text for of_batch in texts for text in of_batch]

        results, _ = run_over(model, held_out, forward, cutter, join)
        everyone = ranks.gather_objects((results, of_pairs))
        encoded = [text for of_rank, _ in everyone for of_window in of_rank for text in of_window]

        def compute() -> dict[str, Any]:
            ids, losses, places, num_documents = self.places(encoded)
            figures = _figures_of(losses, places, num_documents)
            if folder is None:
                return figures
            shown = {name: pair for _, pairs in everyone for name, pair in pairs.items()}
            each = zip(ids, losses.tolist(), places, strict=True)
            judged = judged_of(
                Each(name, shown[name][0], 1.0, loss, np.array([place]), shown[name][1]) for name, loss, place in each
            )
            place_of = place_in(held_out.source.names, held_out.source.parts_per_row)
            notes = write_records(folder, judged, place_of, lambda index: {"place": int(judged.outputs[index, 0])})
            weighted = Weighted(partial(_weighted, judged))
            return with_intervals({**figures, "notes": notes}, judged.groups, [weighted])

        return on_rank_0(ranks, compute)

    def judge(self, encoded: Sequence["Encoded"]) -> dict[str, Any]:
        """The figures of `evaluate`, of the vectors of all texts, in whatever order."""
        _, losses, places, num_documents = self.places(encoded)
        return _figures_of(losses, places, num_documents)

    def places(self, encoded: Sequence["Encoded"]) -> tuple[list[str], np.ndarray, np.ndarray, int]:
        """The ids of the queries, their losses, at which place each found its document, and among how many, by the
        vectors of all texts, in whatever order.
        """
        by_id = sorted(encoded, key=lambda text: text[0])
        documents_of = {
            text_id.removesuffix(_DOCUMENT): (key, vector) for text_id, key, vector in by_id if key is not None
        }
        places: dict[int, int] = {}
        unique = []
        for key, vector in documents_of.values():
            if places.setdefault(key, len(places)) == len(unique):
                unique.append(vector)
        of_queries = [(text_id.removesuffix(_QUERY), vector) for text_id, key, vector in by_id if key is None]
        queries = torch.from_numpy(np.stack([vector for _, vector in of_queries]))
        documents = torch.from_numpy(np.stack(unique))
        right = torch.tensor([places[documents_of[example_id][0]] for example_id, _ in of_queries])
        keys = torch.arange(len(documents))
        losses, ranks_of_right = [], []
        for chunk in torch.arange(len(queries)).split(self.objective.chunk_size):
            scores = self.objective.scores(queries[chunk], documents)
            own = scores.gather(1, right[chunk, None])
            ranks_of_right.append(len(documents) - (scores < own).sum(1))  # last where a score is not a number
            losses.append(self.objective(queries[chunk], right[chunk], documents, keys))
        ids = [example_id for example_id, _ in of_queries]
        return ids, torch.cat(losses).double().numpy(), torch.cat(ranks_of_right).numpy(), len(documents)


def _each_figure(losses: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
    """What each query adds to a mean."""
    recalls = {f"recall_at_{k}": (places <= k).astype(float) for k in _RECALLS}
    return {"loss": losses, "mrr": 1 / places, **recalls}


def _figures_of(losses: np.ndarray, places: np.ndarray, num_documents: int) -> dict[str, Any]:
    means = {name: float(values.mean()) for name, values in _each_figure(losses, places).items()}
    return {"num_examples": len(places), "num_documents": num_documents, **means}


def _weighted(judged: Judged, weights: np.ndarray) -> dict[str, np.ndarray]:
    assert judged.losses is not None
    each = _each_figure(judged.losses, judged.outputs[:, 0])
    return {name: mean(weights, values) for name, values in each.items()}


def _key(token_ids: np.ndarray) -> int:
    """What tells a text from others for the model, that sees no more than its tokens; a signed 64-bit number."""
    return int.from_bytes(blake2b(token_ids.tobytes(), digest_size=8).digest(), "big", signed=True)
