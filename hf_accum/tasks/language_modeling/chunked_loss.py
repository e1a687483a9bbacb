"""The loss of a language model in chunks, so that the logits of a large vocabulary never stand in memory whole.

The model stops before its output layer; the loss takes the layer's inputs, multiplies a chunk of them at a time, and
keeps nothing of a chunk for the backward, which multiplies it again. The sum over chunks is the sum over tokens.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from hf_accum.errors import UserError
from hf_accum.models.modes import not_training
from hf_accum.models.precision import compute_dtype

TOLERANCE = 1e-3
"""Of logits, by their largest: those that are the same differ by rounding, which is far less."""
CHUNK_BYTES = 64 * 2**20
"""Of the logits of a chunk in float32, where its size is not told."""
_LOUD = 1000.0  # logits at which any cap shows
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # in configs


class Targets(NamedTuple):
    """Tokens to predict, (num_targets,) each: where, in a flattened (num_examples, length), and which."""

    positions: Tensor
    tokens: Tensor
    most_chunks: int | None = None
    """That are computed, of made-up ones; None: all."""


def stop_before_output_layer(model: nn.Module) -> nn.Linear:
    """Have a language model give the inputs of its output layer for its logits; returns the layer.

    Logits that are a multiple of the layer's outputs (Cohere, Granite) are such a multiple of its inputs too.

    Raises:
        UserError: if the model has no output layer, one with an adapter, or one that is not all that makes logits of
            its inputs. Without weights only what the config says is known.
    """
    layer = output_layer(model)
    config: Any = model.config
    of_text = config.get_text_config()
    for name in _CAPS:
        if cap := getattr(of_text, name, None):
            raise UserError(
                f"{architecture_of(model)} caps its logits ({name} {cap} in its config): its loss cannot be computed "
                "in chunks; give a `model` that does not, as Gemma 3 instead of Gemma 2"
            )
    if layer.weight.device.type != "meta":
        _check_nothing_follows(model, layer)
    layer.forward = _as_it_is
    return layer


def _check_nothing_follows(model: nn.Module, layer: nn.Linear) -> None:
    """Refuse a model whose logits are not the product of its output layer; small ones would hide a cap."""
    inputs = probe(model, 4, layer.weight.device)
    with torch.no_grad(), not_training(model):
        try:
            layer.forward = _as_it_is
            found = F.linear(model(**inputs).logits.to(layer.weight), layer.weight, layer.bias)
            factor = _LOUD / max(float(found.abs().max()), 1e-6)
            layer.forward = lambda input: factor * F.linear(input, layer.weight, layer.bias)
            expected = model(**inputs).logits
        finally:
            del layer.forward
    if not torch.allclose(factor * found, expected, rtol=0, atol=TOLERANCE * _LOUD):
        raise UserError(
            f"{architecture_of(model)} does more than multiply by its output layer to make logits: its loss cannot "
            "be computed in chunks; give another `model`"
        )


def probe(model: nn.Module, length: int, device: torch.device) -> dict[str, Tensor]:
    """One text that is made up, of different tokens, (1, length): none is padding, whose embedding may be zero."""
    config: Any = model.config
    of_text = config.get_text_config()
    num_tokens = int(of_text.vocab_size)
    known = torch.arange(num_tokens, device=device)
    known = known[known != (-1 if of_text.pad_token_id is None else of_text.pad_token_id)]
    # From the middle of the vocabulary: special tokens stand at its ends.
    ids = known[torch.arange(1, length + 1, device=device) * len(known) // (length + 2)]
    return {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}


def output_layer(model: nn.Module) -> nn.Linear:
    """The layer of a language model that makes logits.

    Raises:
        UserError: if there is none, or an adapter sits on it.
    """
    found: Any = model
    layer = found.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if isinstance(getattr(layer, "base_layer", None), nn.Linear):  # peft's
        name = next(name for name, module in model.named_modules() if module is layer)
        raise UserError(
            f"`lora.target_modules`: has to leave out {name.rpartition('.')[2]}, the output layer, which is not "
            "called by the model: the loss multiplies by its weights, in chunks"
        )
    if not isinstance(layer, nn.Linear):
        raise UserError(f"{architecture_of(model)} has no linear output layer: it is no language model")
    return layer


def architecture_of(model: nn.Module) -> str:
    """The name of a model's class, without adapters."""
    inside: Any = getattr(model, "get_base_model", None)
    return type(model if inside is None else inside()).__name__


@contextmanager
def with_output_layer(model: nn.Module) -> Iterator[None]:
    """The model gives logits inside: to generate text."""
    layer = output_layer(model)
    stopped = layer.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if stopped is not None:
            layer.forward = stopped


def _as_it_is(input: Tensor) -> Tensor:
    return input


@dataclass(frozen=True, eq=False)
class ChunkedCrossEntropy:
    """Cross-entropy over the vocabulary, one item per target; `chunk_size` targets at a time.

    Without a chunk size there are as many as have `CHUNK_BYTES` of logits, at least one.

    `hidden` are the inputs of the model's output layer, (num_examples, length, width). `precision` is accelerate's:
    in it the layer multiplies; the rest is in float32.
    """

    chunk_size: int | None = None
    precision: str = "no"

    def __post_init__(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise UserError(f"chunk size {self.chunk_size}: has to be at least 1")

    def num_at_once(self, layer: nn.Linear) -> int:
        """Targets in a chunk, by the vocabulary of the output layer."""
        return self._num_at_once(layer.weight)

    def _num_at_once(self, weight: Tensor) -> int:
        return self.chunk_size or max(1, CHUNK_BYTES // (weight.shape[0] * torch.float32.itemsize))

    def __call__(self, layer: nn.Linear, hidden: Tensor, targets: Targets) -> Tensor:
        """The summed cross-entropy, a scalar."""
        states = _states_of(hidden, targets)
        return _Loss.apply(states, layer.weight, layer.bias, targets, self)

    @torch.no_grad()
    def judge(self, layer: nn.Linear, hidden: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Of each target the cross-entropy, and whether the most likely token is the right one."""
        losses, is_right = [], []
        weight, bias = self.cast(layer.weight), self.cast(layer.bias)
        for states, tokens in self.chunks(_states_of(hidden, targets), targets, layer.weight):
            logits = self.logits(states, weight, bias)
            is_right.append(logits.argmax(-1) == tokens)
            losses.append(_losses(logits, tokens))
        return torch.cat(losses), torch.cat(is_right)

    def chunks(self, states: Tensor, targets: Targets, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The states of targets, and their tokens, so many at a time as the layer's weight says."""
        size = self._num_at_once(weight)
        every = zip(states.split(size), targets.tokens.split(size), strict=True)
        return islice(every, targets.most_chunks)

    def cast(self, weight: Tensor | None) -> Tensor | None:
        """A weight as the layer multiplies by it: once for all chunks, forward and backward."""
        dtype = compute_dtype(self.precision)
        return weight if dtype == torch.float32 or weight is None else weight.to(dtype)

    def logits(self, states: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """(num_targets, vocabulary), in float32 (float64 for float64 weights), and nobody else's memory."""
        assert weight is not None
        with torch.autocast(states.device.type, enabled=False):
            logits = F.linear(states.to(weight.dtype), weight, bias)
        return logits if logits.dtype == torch.float64 else logits.float()


class _Loss(Function):
    """The loss of states (num_targets, width), and its gradient, for which the logits are made again.

    With p the probabilities of a target's tokens, the gradient by its logits is p, less 1 at the right one.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Targets, how: ChunkedCrossEntropy
    ) -> Tensor:
        cast, cast_bias = how.cast(weight), how.cast(bias)
        ctx.save_for_backward(states, weight, bias, cast, cast_bias)
        ctx.targets, ctx.how = targets, how
        losses = [
            _losses(how.logits(chunk, cast, cast_bias), tokens).sum()
            for chunk, tokens in how.chunks(states, targets, weight)
        ]
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, cast, cast_bias = ctx.saved_tensors
        how: ChunkedCrossEntropy = ctx.how
        by_states, by_weight, by_bias = ctx.needs_input_grad[:3]
        of_states = torch.zeros_like(states) if by_states else None
        of_weight = torch.zeros_like(weight) if by_weight else None
        of_bias = torch.zeros_like(bias) if by_bias else None
        done = 0
        for chunk, tokens in how.chunks(states, ctx.targets, weight):
            right = tokens[:, None]
            of_logits = how.logits(chunk, cast, cast_bias)
            of_logits.sub_(of_logits.amax(-1, keepdim=True)).exp_()
            of_logits.div_(of_logits.sum(-1, keepdim=True))
            of_logits.scatter_(1, right, of_logits.gather(1, right) - 1)
            of_logits.mul_(gradients[0])
            if of_bias is not None:
                of_bias.add_(of_logits.sum(0))
            of_logits = of_logits.to(cast.dtype)
            if of_states is not None:
                of_states[done : done + len(chunk)] = of_logits @ cast
            if of_weight is not None:
                of_weight.addmm_((of_logits.T).to(weight.dtype), chunk.to(cast.dtype).to(weight.dtype))
            done += len(chunk)
        return of_states, of_weight, of_bias, None, None


def _states_of(hidden: Tensor, targets: Targets) -> Tensor:
    """The layer's inputs at the places of the targets, (num_targets, width)."""
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, targets.positions)


def _losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """The cross-entropy of logits, in whose memory it is computed: they are no logits afterwards."""
    largest = logits.amax(-1)
    right = logits.gather(1, tokens[:, None]).squeeze(1)
    return logits.sub_(largest[:, None]).exp_().sum(-1).log() + largest - right


def made_up_targets(share: float, num_examples: int, length: int, chunk_size: int, device: torch.device) -> Targets:
    """Targets of nothing, `share` of all tokens, for the tracer and the tuner.

    One chunk of them is computed: as many operations at any size, as a trace needs, and the most memory that chunks
    take, which come one after the other. So there is a chunk more than the share.
    """
    number = chunk_size + num_examples * math.ceil(share * length)
    nothing = torch.zeros(number, dtype=torch.long, device=device)
    return Targets(nothing, nothing.clone(), most_chunks=1)
