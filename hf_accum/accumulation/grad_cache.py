"""In-batch negatives over the whole window and all ranks, at the memory of one micro-batch.

A contrastive loss is no sum over examples: each pair is told from all others of the window. So the representations
are computed first, without a graph; the loss and its gradient by each of them on all together; and then the forward
runs again with a graph, micro-batch by micro-batch, with the same random numbers, and takes the gradient from there
(GradCache: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hf_accum.accumulation.execution import MicroBatch, WindowExecution
from hf_accum.distributed.ranks import Ranks, talking
from hf_accum.errors import UserError


@dataclass(frozen=True)
class InBatchNegatives:
    """Cross-entropy of telling the right document of each query from those of all other pairs: InfoNCE (van den Oord
    et al., Representation Learning with Contrastive Predictive Coding, 2018) of cosines, divided by `temperature`.

    Documents with the same key are the same one: none of them is a negative of another's query. `chunk_size` queries
    at a time are compared with all documents.

    >>> import torch
    >>> from hf_accum import InBatchNegatives
    >>> same = torch.eye(2)  # two queries, each with its own document
    >>> InBatchNegatives(temperature=1.0)(same, torch.arange(2), same, keys=torch.arange(2))
    tensor([0.3133, 0.3133])
    """

    temperature: float = 0.05
    chunk_size: int = 1024

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature {self.temperature}: has to be above 0")
        if self.chunk_size < 1:
            raise UserError(f"chunk size {self.chunk_size}: has to be at least 1")

    def __call__(self, queries: Tensor, right: Tensor, documents: Tensor, keys: Tensor) -> Tensor:
        """The losses of queries, (num_queries,).

        `queries` (num_queries, width) have their documents at the places `right` of all `documents` (num_documents,
        width), which have the `keys` (num_documents,).
        """
        scores = self.scores(queries, documents)
        same = keys[right, None] == keys[None, :]
        same[torch.arange(len(right), device=same.device), right] = False
        return F.cross_entropy(scores.masked_fill(same, -torch.inf), right, reduction="none")

    def scores(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Cosines by the temperature, (num_queries, num_documents), in float32 or more."""
        return _unit(queries) @ _unit(documents).T / self.temperature

    @torch.enable_grad()
    def with_gradients(self, queries: Tensor, documents: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of pairs, (num_pairs,), and the gradient of their sum by the queries and by the documents."""
        queries = queries.detach().requires_grad_()
        documents = documents.detach().requires_grad_()
        losses = []
        for right in torch.arange(len(queries), device=queries.device).split(self.chunk_size):
            of_chunk = self(queries[right], right, documents, keys)
            of_chunk.sum().backward()
            losses.append(of_chunk.detach())
        assert queries.grad is not None
        assert documents.grad is not None
        return torch.cat(losses), queries.grad, documents.grad


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)


class GatheredRows:
    """Vectors of all ranks, of which this rank keeps its own micro-batch by micro-batch.

    What can run out of memory stands where that is told to the other ranks before they wait for this one: the buffers
    of the exchange are made with the last no-grad pass, and nothing but the exchange before it.
    """

    def __init__(self, num_rows: Sequence[int], rank: int) -> None:
        self._num_rows = num_rows
        self._rank = rank
        self._kept: list[tuple[list[int], Tensor]] = []
        self._of_ranks: list[Tensor] = []

    def keep(self, micro_batch: MicroBatch, places: list[int], vectors: Tensor) -> None:
        """Those of a no-grad pass, (num_places, width), at their places among this rank's."""
        if micro_batch.index == 0:  # also where the window starts anew
            self._kept, self._of_ranks = [], []
        if not micro_batch.is_dummy:
            self._kept.append((places, vectors.detach()))
        if micro_batch.index < micro_batch.count - 1:
            return
        rows = [vectors.new_zeros(max(self._num_rows), vectors.shape[1]) for _ in self._num_rows]
        for at, of_micro_batch in self._kept:
            rows[self._rank][at] = of_micro_batch
        self._kept, self._of_ranks = [], [*rows, rows[self._rank].clone()]

    def of_all_ranks(self) -> list[Tensor]:
        """Each rank's, (num_rows, width), when all are kept. A collective."""
        *everyone, mine = self._of_ranks
        if len(everyone) > 1:
            with talking():
                dist.all_gather(everyone, mine)
        return [rows[:count] for rows, count in zip(everyone, self._num_rows, strict=True)]


class RepresentationCache:
    """The representations of a window's texts, and the gradient of the contrastive loss by each, on this rank.

    The examples of the window are pairs: their parts are a query and a document, the latter with a `key` among its
    features. Making one is a collective.
    """

    def __init__(self, execution: WindowExecution, objective: InBatchNegatives, ranks: Ranks) -> None:
        window = execution.window
        self.objective = objective
        self.ranks = ranks
        keys = ranks.gather_objects([pair.parts[1].features["key"] for pair in window.examples])
        self._keys = torch.tensor([key for of_rank in keys for key in of_rank], dtype=torch.long)
        self._counts = [len(of_rank) for of_rank in keys]
        # Queries first, then documents.
        texts = [pair.parts[side] for side in (0, 1) for pair in window.examples]
        self._places = {text.id: place for place, text in enumerate(texts)}
        self._vectors = GatheredRows([2 * count for count in self._counts], ranks.index)
        self._gradients: Tensor | None = None
        self._loss: Tensor | None = None

    def keep(self, micro_batch: MicroBatch, representations: Tensor) -> None:
        """Keep the representations of a no-grad pass's texts, (num_texts, width)."""
        self._gradients = None
        places = [] if micro_batch.is_dummy else self._places_of(micro_batch)
        self._vectors.keep(micro_batch, places, representations)

    def gradient(self, micro_batch: MicroBatch) -> Tensor:
        """Of the loss summed over the pairs of all ranks, by the representations of these texts: (num_texts, width).

        A collective at the first micro-batch of a window, when all are kept.
        """
        if self._gradients is None:
            self._gradients = self._contrast(self._vectors.of_all_ranks())
        if micro_batch.is_dummy:
            return self._gradients.new_zeros(len(micro_batch.examples), self._gradients.shape[1])
        return self._gradients[self._places_of(micro_batch)]

    def loss(self, micro_batch: MicroBatch) -> Tensor:
        """What the log is to be told of a micro-batch: at the first one the loss summed over this rank's own pairs.

        Each pair's loss is of all pairs together, and so of no micro-batch; the others have none.
        """
        assert self._loss is not None
        return self._loss if micro_batch.index == 0 else torch.zeros_like(self._loss)

    def _contrast(self, of_ranks: Sequence[Tensor]) -> Tensor:
        """The gradients by this rank's texts, queries first."""
        pairs = [rows.tensor_split(2) for rows in of_ranks]
        queries, documents = (torch.cat(of_side) for of_side in zip(*pairs, strict=True))
        losses, by_queries, by_documents = self.objective.with_gradients(
            queries, documents, self._keys.to(queries.device)
        )
        start = sum(self._counts[: self.ranks.index])
        own = slice(start, start + self._counts[self.ranks.index])
        self._loss = losses[own].sum()
        return torch.cat([by_queries[own], by_documents[own]])

    def _places_of(self, micro_batch: MicroBatch) -> list[int]:
        return [self._places[text.id] for text in micro_batch.examples]
