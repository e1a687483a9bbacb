"""A contrastive loss over a whole window for anybody's encoders, at the memory of one micro-batch.

By `hf_accum.accumulation.grad_cache`, which names the source; here the examples of a window are pairs (or triples),
whose sides are encoded together.
"""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_accum.accumulation.capacity import WorkingCapacity
from hf_accum.accumulation.example import inputs_of
from hf_accum.accumulation.execution import MicroBatch, WindowExecution
from hf_accum.accumulation.grad_cache import GatheredRows, InBatchNegatives
from hf_accum.accumulation.splitting import Cutter
from hf_accum.distributed.ranks import Ranks, shared_ranks_of
from hf_accum.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

Objective = InBatchNegatives | Callable[..., Tensor]


class GradCache:
    """The loss of all pairs of a window, over all ranks, and its exact gradient. Made once; a collective.

    `objective(queries, documents)` gives the losses (num_pairs,) of all pairs of the window, from the vectors
    (num_pairs, width) of each side: an `InBatchNegatives`, or any function of as many sides as `scaled` is given.

    Its `micro_batches` come twice: without a graph, to know all vectors, and with one. In each the encoders run, in
    the same order, with the same random numbers, and `scaled` is given what they made.

    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_accum import GradCache, InBatchNegatives, accumulate, windows_of
    >>> accelerator, encoder = Accelerator(cpu=True), torch.nn.Linear(4, 2)
    >>> batches = [{"query": torch.randn(3, 4), "document": torch.randn(3, 4)} for _ in range(2)]
    >>> cache = GradCache(accelerator, InBatchNegatives(0.05))
    >>> for window in windows_of(accelerator, batches, batches_per_step=2):
    ...     for micro_batch in cache.micro_batches(window, 2):  # at most 2 pairs at once; the loss is of all 6
    ...         with accumulate(accelerator, encoder, micro_batch):
    ...             pairs = micro_batch.batch
    ...             loss = cache.scaled(micro_batch, encoder(pairs["query"]), encoder(pairs["document"]))
    ...             if loss is not None:
    ...                 accelerator.backward(loss)
    >>> encoder.weight.grad.shape
    torch.Size([2, 4])
    """

    def __init__(self, accelerator: "Accelerator", objective: Objective) -> None:
        self.objective = objective
        self._ranks: Ranks = shared_ranks_of(accelerator)
        self._places: dict[str, int] = {}
        self._counts: list[int] = []
        self._sides: list[GatheredRows] = []
        self._gradients: list[Tensor] | None = None
        self._loss: Tensor | None = None

    def micro_batches(
        self, window: WindowExecution, capacity: Cutter | WorkingCapacity | int = sys.maxsize
    ) -> Iterator[MicroBatch]:
        """Those of a window, each at first without a graph. If one runs out of memory, all ranks start anew."""
        pairs = inputs_of(window.window.examples)
        self._places = {pair.id: place for place, pair in enumerate(pairs)}
        self._counts = [count for (count,) in self._ranks.gather([len(pairs)])]
        return window.micro_batches(capacity, no_grad_pass=self._ranks)

    def scaled(self, micro_batch: MicroBatch, *vectors: Tensor) -> Tensor | None:
        """What `accelerator.backward` takes; None in a micro-batch without a graph.

        Args:
            micro_batch: of `micro_batches`.
            vectors: of its pairs, (num_pairs, width) for each side.

        Raises:
            UserError: if the vectors are not those of the pairs, or of micro-batches of the window itself; if the
                objective does not give a loss for each pair.
        """
        for side in vectors:
            if side.ndim != 2 or len(side) != len(micro_batch.examples):
                raise UserError(
                    f"vectors of the shape {tuple(side.shape)}: has to be ({len(micro_batch.examples)}, width), one "
                    "for each pair of the micro-batch"
                )
        if micro_batch.is_no_grad_pass:
            self._keep(micro_batch, vectors)
            return None
        if not self._sides or not (micro_batch.is_dummy or all(p.id in self._places for p in micro_batch.examples)):
            raise UserError(
                "vectors of a window that were not kept before: take its micro-batches from "
                "`cache.micro_batches(window, capacity)`, which come twice"
            )
        if self._gradients is None:
            self._gradients = self._contrast()
        places = self._places_of(micro_batch)
        products = [
            (side * (gradient[places] if places else torch.zeros_like(side))).sum()
            for side, gradient in zip(vectors, self._gradients, strict=True)
        ]
        assert self._loss is not None
        noted = self._loss if micro_batch.index == 0 else torch.zeros_like(self._loss)
        return micro_batch.scaled(torch.stack(products).sum(), noted=noted)

    def _keep(self, micro_batch: MicroBatch, vectors: tuple[Tensor, ...]) -> None:
        if micro_batch.index == 0:  # also where the window starts anew
            self._gradients = None
            self._sides = [GatheredRows(self._counts, self._ranks.index) for _ in vectors]
        for kept, side in zip(self._sides, vectors, strict=True):
            kept.keep(micro_batch, self._places_of(micro_batch), side)

    @torch.enable_grad()
    def _contrast(self) -> list[Tensor]:
        """The gradients of the summed loss by this rank's vectors of each side."""
        sides = [torch.cat(kept.of_all_ranks()) for kept in self._sides]
        own = slice(start := sum(self._counts[: self._ranks.index]), start + self._counts[self._ranks.index])
        if isinstance(self.objective, InBatchNegatives):
            keys = torch.arange(sum(self._counts), device=sides[0].device)
            losses, *gradients = self.objective.with_gradients(*sides, keys)  # type: ignore[call-arg] (two sides)
        else:
            sides = [side.requires_grad_() for side in sides]
            losses = self.objective(*sides)
            if losses.shape != (sum(self._counts),):
                raise UserError(
                    f"an objective that gives losses of the shape {tuple(losses.shape)}: has to be one for each "
                    f"pair of the window, ({sum(self._counts)},)"
                )
            gradients = torch.autograd.grad(losses.sum(), sides)
        self._loss = losses[own].detach().sum()
        return [gradient[own] for gradient in gradients]

    def _places_of(self, micro_batch: MicroBatch) -> list[int]:
        return [] if micro_batch.is_dummy else [self._places[pair.id] for pair in micro_batch.examples]
