"""LoRA adapters: put on, counted, saved."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_accum.config.lora import LINEAR_AND_CONV, LoraConfig
from hf_accum.errors import UserError, first_line
from hf_accum.models.heads import trained_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_lora(
    model: "PreTrainedModel",
    lora: LoraConfig,
    *,
    task_type: str | None,
    new_modules: Sequence[str] = (),
    dropout: float | None = None,
) -> nn.Module:
    """Freeze the model but for LoRA adapters and its new modules; rank 0 returns it as it is, all trainable.

    Adapters sit on the modules of `lora.target_modules`, which have to exist; `new_modules`, and a classifier's
    head also where it is not new, are trained whole and saved with the adapter. Everything trained is in float32.
    `task_type` is peft's, as SEQ_CLS, or MASKED_LM, of which it has no type, as of models of images (None). `dropout`
    overrides that of the adapters.

    Raises:
        UserError: if no module of the model is a target, or the model reads what an adapter hides.
    """
    if lora.rank == 0:
        return model
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType, get_peft_model

    heads = trained_head(model, task_type)
    targets = lora.target_modules
    if targets == LINEAR_AND_CONV:
        targets = linear_and_conv(model, [*new_modules, *heads], lora.rank)
    peft_config = PeftLoraConfig(
        task_type=task_type if task_type in set(TaskType) else None,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout if dropout is None else dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=[*heads, *(name for name in new_modules if not _is_inside(name, heads))] or None,
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by a name that is deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        try:
            adapted = get_peft_model(model, peft_config)
        except ValueError as error:
            if "groups" in str(error):
                raise UserError(
                    f"`lora.target_modules` {lora.target_modules}: has to leave out convolutions by groups, as "
                    f"depthwise ones are, or `lora.rank` to be a multiple of their groups; {LINEAR_AND_CONV} leaves "
                    f"them out ({first_line(error)})"
                ) from error
            kinds = (nn.Linear, nn.Conv2d)
            linear = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, kinds)}
            raise UserError(
                f"`lora.target_modules` {lora.target_modules}: has to match modules of {type(model).__name__}, as "
                f"{', '.join(sorted(linear))} ({error})"
            ) from error
    _refuse_dilation(adapted, lora)
    _refuse_padded_as_in_tensorflow(adapted, lora.rank)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return adapted


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _refuse_dilation(adapted: nn.Module, lora: LoraConfig) -> None:
    """Adapters of convolutions with dilation: peft makes them without, of which the results have other sizes."""
    for name, module in adapted.named_modules():
        if not name.endswith(".base_layer") or not isinstance(module, nn.modules.conv._ConvNd):
            continue
        if any(step != 1 for step in module.dilation):
            raise UserError(
                f"`lora.target_modules` {lora.target_modules}: has to leave out convolutions with dilation, as "
                f"{name.removesuffix('.base_layer')}: peft's adapters have none; {LINEAR_AND_CONV} leaves them out"
            )


def _refuse_padded_as_in_tensorflow(adapted: nn.Module, rank: int) -> None:
    """MobileNetV1 and V2 pad by the strides of their convolutions, which peft's layers around them have not."""
    config = getattr(adapted, "config", None)
    if getattr(config, "tf_padding", False) and any(
        isinstance(getattr(module, "base_layer", None), nn.Conv2d) for module in adapted.modules()
    ):
        raise UserError(
            f"`lora.rank` {rank}: {getattr(config, 'model_type', 'the model')} reads the strides of its convolutions "
            "(tf_padding of its config), which an adapter on them hides; `lora.rank 0` trains all weights"
        )


def linear_and_conv(model: nn.Module, heads: Sequence[str], rank: int) -> list[str]:
    """The names of linear layers and convolutions over all channels that are in none of the heads.

    Only of those with more weights than their adapter of that rank has. An adapter of a convolution by groups (a
    depthwise one) would need a rank that they divide; one of a convolution with dilation peft makes without it.

    Raises:
        UserError: if there is none.
    """
    names = []
    for name, module in model.named_modules():
        if _is_inside(name, heads):
            continue
        if isinstance(module, nn.Linear):
            num_outputs, num_inputs = module.out_features, module.in_features  # weights of 4 bits have another shape
        elif isinstance(module, nn.Conv2d) and module.groups == 1 and module.dilation == (1, 1):
            num_outputs, num_inputs = module.weight.shape[0], module.weight[0].numel()
        else:
            continue
        if num_outputs * num_inputs > rank * (num_outputs + num_inputs):
            names.append(name)
    if not names:
        raise UserError(
            f"`lora.rank` {rank}: no layer of {type(model).__name__} has more weights than an adapter of that rank; "
            "a smaller one, or 0 to train all weights"
        )
    return names


def fold_adapters(model: nn.Module) -> nn.Module:
    """The model with adapters added to weights in float32, to be computed with alone: without peft's layers.

    Weights of fewer bits stay as they are: the sum would lose what the adapter has learned.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel) and all(p.dtype == torch.float32 for p in model.parameters()):
        return model.merge_and_unload()  # type: ignore[operator] (of LoRA's own model)
    return model


def checkpoint_activations(model: "PreTrainedModel") -> None:
    """Compute activations again in the backward. Not re-entrant, so that gradients reach adapters inside.

    `model` is the one that transformers made. Call this after `add_lora`: else peft has the gradient of the
    embeddings computed, which only re-entrant checkpointing needs.

    Raises:
        UserError: if the architecture has no support for it.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(f"`gradient_checkpointing` true: {type(model).__name__} has no support for it")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()  # transformers asks for the same gradient
    model.config.use_cache = False


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters, and all."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
