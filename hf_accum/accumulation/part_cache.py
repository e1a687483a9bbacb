"""The loss of examples whose parts are pooled, exact for any cut: the parts of one may lie in several micro-batches.

A loss of pooled outputs (the logits of a long text, from those of its windows) is no sum over the parts. So the
outputs are computed first, without a graph; the losses and their gradient by each part's outputs on all of these; and
then the forward runs again with a graph, with the same random numbers, and takes the gradient from there, as in
`hf_accum.accumulation.grad_cache`, which names the source. An example's parts are on one rank, so that the ranks have
nothing to say to each other.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.execution import MicroBatch
from hf_accum.accumulation.window_cut import Piece
from hf_accum.config.long_texts import WindowPooling


def pool_parts(outputs: Tensor, counts: Sequence[int], pooling: WindowPooling) -> Tensor:
    """The pooled outputs of examples, (num_examples, width), in float32 at least.

    `outputs` are those of their parts, (num_parts, width), one example after the other, which have `counts` of them.
    For `attention` each row ends in a score, by whose softmax over the parts the others are weighed (Yang et al.,
    Hierarchical Attention Networks for Document Classification, NAACL 2016): (num_parts, width + 1).
    """
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    padded = pad_sequence(list(outputs.split(list(counts))), batch_first=True)
    numbers = torch.tensor(counts, device=outputs.device)
    is_part = (torch.arange(padded.shape[1], device=outputs.device) < numbers[:, None])[..., None]
    if pooling == "max":
        return padded.masked_fill(~is_part, -torch.inf).amax(1)
    if pooling == "mean":
        return padded.sum(1) / numbers[:, None]  # what is padded is 0
    scores = padded[..., -1:].masked_fill(~is_part, -torch.inf)
    return (scores.softmax(1) * padded[..., :-1]).sum(1)


@dataclass(frozen=True)
class LinearLoss:
    """A loss as a function of outputs, where they are as they were kept: its value there, and its gradient by them.

    `gradient` is (num_inputs, width), as the outputs that it is called with.
    """

    value: Tensor
    gradient: Tensor

    def __call__(self, outputs: Tensor) -> Tensor:
        """A scalar of that value, whose gradient goes on into what made the outputs."""
        product = (outputs.to(self.gradient.dtype) * self.gradient).sum()
        return product - product.detach() + self.value


class PartCache:
    """The outputs of a window's examples of several parts, and the gradient of their losses by each, on this rank.

    The `rehearsal` of a window's execution. `accumulating(micro_batch)` is `accumulate` as the run calls it;
    `outputs(model, batch)` are those of a micro-batch, (num_inputs, width); `loss(examples, outputs)` is the loss of
    whole examples, summed, from those of all their parts, one after the other.

    Micro-batches without a part of several run once, on the batch that was collated; the others twice, at last on
    the batch's inputs and a `LinearLoss`. An example of one part that is in there with others is a case of that, too.
    """

    def __init__(
        self,
        accumulating: Callable[[MicroBatch], AbstractContextManager[None]],
        model: nn.Module,
        examples: Sequence[Example],
        outputs: Callable[[nn.Module, Any], Tensor],
        loss: Callable[[Sequence[Example], Tensor], Tensor],
    ) -> None:
        self._accumulating, self._model, self._examples = accumulating, model, examples
        self._outputs, self._loss = outputs, loss
        self._several = {part.id for example in examples if len(example.parts) > 1 for part in example.parts}
        self._kept: list[tuple[Piece, Tensor]] = []
        self._places: dict[str, int] = {}
        self._gradient: Tensor | None = None
        self._value: Tensor | None = None

    def needs(self, piece: Piece) -> bool:
        """Whether a micro-batch of these is to be run without a graph before."""
        return any(part.id in self._several for part in piece)

    def run(self, micro_batch: MicroBatch) -> None:
        """Run one without a graph, and at the last one differentiate the loss by what all of them gave.

        Memory that runs out is told to the micro-batch, as `accumulate` does.
        """
        with self._accumulating(micro_batch):
            if micro_batch.index == 0:  # also where the window starts anew
                self._kept, self._gradient = [], None
            self._kept.append((micro_batch.examples, self._outputs(self._model, micro_batch.batch).detach()))
            if micro_batch.index == micro_batch.count - 1:
                self._differentiate()

    def batch(self, micro_batch: MicroBatch) -> Any:
        """What the loss of a micro-batch is computed of: its batch, or for one that ran before inputs and loss."""
        if not self.needs(micro_batch.examples):
            return micro_batch.batch
        assert self._gradient is not None
        assert self._value is not None
        value, self._value = self._value, torch.zeros_like(self._value)  # of all of them, noted with the first
        places = [self._places[part.id] for part in micro_batch.examples]
        return micro_batch.batch[0], LinearLoss(value, self._gradient[places])

    @torch.enable_grad()
    def _differentiate(self) -> None:
        rows = {part.id: row for row, part in enumerate(part for piece, _ in self._kept for part in piece)}
        examples = [example for example in self._examples if inputs_of([example])[0].id in rows]
        parts = inputs_of(examples)
        assert len(parts) == len(rows), "an example of which some parts ran, and some did not"
        outputs = torch.cat([outputs for _, outputs in self._kept])[[rows[part.id] for part in parts]]
        self._kept = []
        loss = self._loss(examples, outputs.requires_grad_())
        (self._gradient,) = torch.autograd.grad(loss, [outputs])
        self._value = loss.detach()
        self._places = {part.id: place for place, part in enumerate(parts)}
