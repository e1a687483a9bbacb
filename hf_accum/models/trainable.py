"""The model of a recipe as its flags ask for it: loaded or without weights, with adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_accum.config.recipe import RecipeConfig
from hf_accum.models.loading import build_without_weights, load_model
from hf_accum.models.lora import add_lora, checkpoint_activations
from hf_accum.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    auto_class: Any,
    name: str,
    tokenizer: "PreTrainedTokenizerBase | None",
    config: RecipeConfig,
    *,
    task_type: str | None,
    precision: str,
    device: torch.device,
    replace_head: bool = False,
    **config_values: Any,
) -> Trainable:
    """Load `name` by a transformers Auto class, with `config_values` in its config, and put adapters on.

    `task_type` is peft's, as SEQ_CLS; of models of images it has none. What is new (a head, the adapters) is the same
    for the same seed. With `replace_head` a head for other labels is new too.

    Raises:
        UserError: as `load_model` and `add_lora` do.
    """
    torch.manual_seed(derive_seed(config.seed, "model"))
    pretrained = load_model(
        auto_class,
        name,
        tokenizer,
        max_length=config.max_length,
        dropout=config.dropout,
        doors=config.doors,
        quantization=config.quantization,
        precision=precision,
        device=device,
        replace_head=replace_head,
        **config_values,
    )
    model = _with_adapters(pretrained.model, config, task_type, pretrained.new_modules)
    model.to(device)
    return Trainable(model, pretrained.model, pretrained.new_modules)


def without_weights(
    auto_class: Any, name: str, config: RecipeConfig, *, task_type: str | None, **config_values: Any
) -> nn.Module:
    """The same model on `meta`, from its config alone, checkpointed where the flags say so: for a plan.

    Raises:
        UserError: as `build_without_weights` and `add_lora` do; if it cannot be checkpointed.
    """
    base = build_without_weights(
        auto_class,
        name,
        max_length=config.max_length,
        dropout=config.dropout,
        doors=config.doors,
        quantization=config.quantization,
        **config_values,
    )
    model = _with_adapters(base, config, task_type)
    if config.gradient_checkpointing is True:
        checkpoint_activations(base)
    return model


def _with_adapters(
    base: "PreTrainedModel", config: RecipeConfig, task_type: str | None, new_modules: Sequence[str] = ()
) -> nn.Module:
    return add_lora(
        base,
        config.lora,
        task_type=task_type,
        new_modules=new_modules,
        dropout=config.dropout,
        fused=config.fast_kernels,
    )
