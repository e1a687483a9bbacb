"""The model of a recipe as its flags ask for it: loaded or without weights, with adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.models.attention import share_mask
from hf_accum.models.forward_failure import naming_forward_failure
from hf_accum.models.loading import build_without_weights, load_model
from hf_accum.models.lora import add_lora, checkpoint_activations
from hf_accum.models.offload import offload_activations
from hf_accum.models.parts import freeze_embeddings
from hf_accum.models.precision import autocast_of, compute_dtype, compute_in_dtype_of_autocast, frozen_dtype
from hf_accum.models.saving import Processor
from hf_accum.models.spec import ModelSpec
from hf_accum.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Trainable:
    """A model in train mode, with its adapters."""

    model: nn.Module
    base: "PreTrainedModel"
    """What the adapters sit in, or the same without adapters."""
    new_modules: tuple[str, ...] = ()
    """Without pretrained weights: the task's head, as a rule."""

    def checkpoint(self) -> None:
        """Turn gradient checkpointing on.

        Raises:
            UserError: if the architecture has no support for it.
        """
        checkpoint_activations(self.base)


def load_trainable(
    spec: ModelSpec,
    processor: Processor,
    config: RecipeConfig,
    *,
    precision: str = "no",
    device: torch.device,
) -> Trainable:
    """Load a model with its weights, and put adapters on.

    What is new (a head, the adapters) is the same for the same seed. The `processor` makes the model's inputs;
    where it is a tokenizer it has to be that of the model.

    Raises:
        UserError: as `load_model`, `frozen_dtype` and `add_lora` do; if the spec needs weights that are not there.
    """
    from transformers import PreTrainedTokenizerBase

    tokenizer = processor if isinstance(processor, PreTrainedTokenizerBase) else None
    torch.manual_seed(derive_seed(config.seed, "model"))
    pretrained = load_model(
        spec.auto_class,
        spec.name,
        tokenizer,
        max_length=config.max_length,
        task_type=spec.task_type,
        dropout=config.dropout,
        trust=config.trust,
        quantization=config.quantization,
        dtype=frozen_dtype(config, precision),
        precision=precision,
        device=device,
        replace_head=spec.replace_head,
        **spec.config_values,
    )
    if spec.has_to_be and pretrained.new_modules:
        raise UserError(
            f"`model` {spec.name}: has to be {spec.has_to_be}: it has no weights for "
            f"{', '.join(pretrained.new_modules)}"
        )
    model = _with_adapters(spec, pretrained.model, config, pretrained.new_modules)
    model.to(device)
    share_mask(pretrained.model)
    if spec.prepare is not None:
        with naming_forward_failure(pretrained.model, config, "no"), autocast_of(pretrained.model):
            spec.prepare(pretrained.model)
    _finish(model, config, precision)
    return Trainable(model, pretrained.model, pretrained.new_modules)


def without_weights(spec: ModelSpec, config: RecipeConfig, precision: str = "no") -> nn.Module:
    """The same model on `meta`, from its config alone, checkpointed where the flags say so: for a plan.

    Raises:
        UserError: as `build_without_weights` and `add_lora` do; if it cannot be checkpointed.
    """
    base = build_without_weights(
        spec.auto_class,
        spec.name,
        max_length=config.max_length,
        task_type=spec.task_type,
        dropout=config.dropout,
        trust=config.trust,
        quantization=config.quantization,
        dtype=frozen_dtype(config, precision),
        precision=precision,
        **spec.config_values,
    )
    model = _with_adapters(spec, base, config)
    share_mask(base)
    if spec.prepare is not None:
        spec.prepare(base)
    _finish(model, config, precision)
    if config.gradient_checkpointing is True:
        checkpoint_activations(base)
    return model


def _with_adapters(
    spec: ModelSpec, base: "PreTrainedModel", config: RecipeConfig, new_modules: Sequence[str] = ()
) -> nn.Module:
    return add_lora(base, config.lora, task_type=spec.task_type, new_modules=new_modules, dropout=config.dropout)


def _finish(model: nn.Module, config: RecipeConfig, precision: str) -> None:
    """What holds from the first forward in the run's precision on."""
    if compute_dtype(precision) != torch.float32:
        compute_in_dtype_of_autocast(model)
    if config.freeze_embeddings:
        freeze_embeddings(model)
    if config.activation_offload:
        offload_activations(model)
