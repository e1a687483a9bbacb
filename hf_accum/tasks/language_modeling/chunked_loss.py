"""The loss of a language model in chunks, so that the logits of a large vocabulary never stand in memory whole.

The model stops before its output layer; the loss takes the layer's inputs, multiplies a chunk of them at a time, and
keeps nothing of a chunk for the backward, which multiplies it again. The sum over chunks is the sum over tokens.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from hf_accum.errors import UserError
from hf_accum.models.modes import not_training
from hf_accum.tasks.tokenization import made_up_inputs
from hf_accum.tuner.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-3
"""Of logits, by their largest: those that are the same differ by rounding, which is far less."""
_LOUD = 1000.0  # logits at which any cap shows
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # in configs


class Targets(NamedTuple):
    """Tokens to predict, (num_targets,) each: where, in a flattened (num_examples, length), and which."""

    positions: Tensor
    tokens: Tensor


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
    with torch.inference_mode(), not_training(model):
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
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
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

    `hidden` are the inputs of the output `layer`, (num_examples, length, width). `precision` is accelerate's: in it
    the layer multiplies; the rest is in float32.
    """

    layer: nn.Linear
    chunk_size: int = 1024
    precision: str = "no"

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise UserError(f"chunk size {self.chunk_size}: has to be at least 1")

    def __call__(self, hidden: Tensor, targets: Targets) -> Tensor:
        """The summed cross-entropy."""
        return torch.stack([self.of_chunk(*of_chunk) for of_chunk in self._chunks(hidden, targets)]).sum()

    def of_chunk(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Of the inputs of the layer for some targets, (num_targets, width), and their tokens: the summed loss."""
        loss = checkpoint(self._loss, hidden, tokens, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(loss, Tensor)
        return loss

    @torch.no_grad()
    def judge(self, hidden: Tensor, targets: Targets) -> tuple[float, int]:
        """The summed cross-entropy, and for how many targets the most likely token is the right one."""
        loss, num_right = 0.0, 0
        for of_chunk, tokens in self._chunks(hidden, targets):
            logits = self._logits(of_chunk)
            loss += float(F.cross_entropy(logits, tokens, reduction="sum"))
            num_right += int((logits.argmax(-1) == tokens).sum())
        return loss, num_right

    def _chunks(self, hidden: Tensor, targets: Targets) -> Iterator[tuple[Tensor, Tensor]]:
        of_targets = hidden.reshape(-1, hidden.shape[-1]).index_select(0, targets.positions)
        return zip(of_targets.split(self.chunk_size), targets.tokens.split(self.chunk_size), strict=True)

    def _loss(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(hidden), tokens, reduction="sum")

    def _logits(self, hidden: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        if dtype is None:
            logits = F.linear(hidden.to(weight.dtype), weight, bias)
        else:
            with torch.autocast(hidden.device.type, dtype):
                logits = F.linear(hidden, weight, bias)
        return logits if logits.dtype == torch.float64 else logits.float()


def language_workload(
    model: "PreTrainedModel | nn.Module",
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    chunk_size: int,
    max_length: int,
    share: float = 1.0,
    precision: str = "no",
) -> Workload:
    """What training and evaluating a language model compute, for the tracer and the tuner: no data is needed.

    `share` of the tokens are targets. One chunk of `chunk_size` is computed: as many operations at any size, as a
    trace needs, and the most memory that chunks take, which come one after the other.
    """

    def one_chunk(model: nn.Module, num_examples: int, length: int, device: torch.device) -> tuple[Any, ...]:
        hidden = model(**made_up_inputs(model, num_examples, length, device)).logits
        positions = torch.zeros(math.ceil(share * num_examples * length), dtype=torch.long, device=device)
        of_targets = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
        tokens = torch.zeros(chunk_size, dtype=torch.long, device=device)
        objective = ChunkedCrossEntropy(output_layer(model), chunk_size, precision)
        return objective, of_targets, of_targets[:1].expand(chunk_size, -1).contiguous(), tokens

    def loss(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        objective, of_targets, of_chunk, tokens = one_chunk(model, num_examples, length, device)
        return objective.of_chunk(of_chunk, tokens) + 0.0 * of_targets.sum()

    def predict(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        objective, _, of_chunk, tokens = one_chunk(model, num_examples, length, device)
        return objective.of_chunk(of_chunk, tokens)

    return Workload(model, optimizer, loss, predict, max_length, precision=precision)
