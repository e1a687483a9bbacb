"""LoRA adapters: put on, counted, saved."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from hf_accum.config.lora import LINEAR_AND_CONV, LoraConfig
from hf_accum.files import fill_folder_atomically
from hf_accum.models.loading import quiet_transformers
from hf_accum.models.quantization import head_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Processor(Protocol):
    """What makes a model's inputs: a tokenizer, or an image processor."""

    def save_pretrained(self, save_directory: str, /) -> object:
        """Write its files into a folder."""
        ...


_SETS = ("target_modules", "modules_to_save", "exclude_modules")


def add_lora(
    model: "PreTrainedModel",
    lora: LoraConfig,
    *,
    task_type: str | None,
    new_modules: Sequence[str] = (),
    dropout: float | None = None,
    fused: bool = True,
) -> nn.Module:
    """Freeze the model but for LoRA adapters and its new modules; rank 0 returns it as it is, all trainable.

    Adapters sit on the modules of `lora.target_modules`, which have to exist; `new_modules`, and a classifier's
    head also where it is not new, are trained whole and saved with the adapter. Everything trained is in float32.
    `task_type` is peft's, as SEQ_CLS, or MASKED_LM, of which it has no type, as of models of images (None). `dropout`
    overrides that of the adapters; `fused` ones compute the same in fewer operations.

    Raises:
        ValueError: if no module of the model is a target.
    """
    if lora.rank == 0:
        return model
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType, get_peft_model

    heads = _head_of(model, task_type)
    targets = lora.target_modules
    if targets == LINEAR_AND_CONV:
        targets = linear_and_conv(model, [*new_modules, *heads], lora.rank)
    peft_config = PeftLoraConfig(
        task_type=task_type if task_type in set(TaskType) else None,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout if dropout is None else dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=list(dict.fromkeys([*new_modules, *heads])) or None,
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by a name that is deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        try:
            adapted = get_peft_model(model, peft_config)
        except ValueError as error:
            kinds = (nn.Linear, nn.Conv2d)
            linear = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, kinds)}
            raise ValueError(
                f"--lora.target_modules {lora.target_modules}: has to match modules of {type(model).__name__}, as "
                f"{', '.join(sorted(linear))} ({error})"
            ) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    if fused:
        from hf_accum.models.fused_lora import fuse_lora

        fuse_lora(adapted)
    return adapted


def _head_of(model: "PreTrainedModel", task_type: str | None) -> list[str]:
    """A classifier's modules beside its backbone; of other tasks (a language model's head) none."""
    return head_modules(model) if task_type in ("SEQ_CLS", "TOKEN_CLS", None) else []


def linear_and_conv(model: nn.Module, heads: Sequence[str], rank: int) -> list[str]:
    """The names of linear layers and convolutions over all channels that are in none of the heads.

    Only of those with more weights than their adapter of that rank has. An adapter of a convolution by groups (a
    depthwise one) would need a rank that they divide; one of a convolution with dilation peft makes without it.

    Raises:
        ValueError: if there is none.
    """
    names = []
    for name, module in model.named_modules():
        if any(name == head or name.startswith(f"{head}.") for head in heads):
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
        raise ValueError(
            f"--lora.rank {rank}: no layer of {type(model).__name__} has more weights than an adapter of that rank; "
            "a smaller one, or 0 to train all weights"
        )
    return names


def checkpoint_activations(model: "PreTrainedModel") -> None:
    """Compute activations again in the backward. Not re-entrant, so that gradients reach adapters inside.

    `model` is the one that transformers made. Call this after `add_lora`: else peft has the gradient of the
    embeddings computed, which only re-entrant checkpointing needs.

    Raises:
        ValueError: if the architecture has no support for it.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(f"--gradient_checkpointing true: {type(model).__name__} has no support for it")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()  # transformers asks for the same gradient
    model.config.use_cache = False


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters, and all."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def save_model(model: nn.Module, processor: Processor, folder: Path) -> None:
    """Save an adapter (with the head), or a whole model, and what makes its inputs: the folder is there whole or not.

    `model` is the one that transformers or peft made, not a wrapper of it.
    """
    fill_folder_atomically(folder, lambda partial: write_model(model, processor, partial))


def write_model(
    model: nn.Module,
    processor: Processor,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter or a model into a folder; `weights`, as `weights_of` gave them, instead of those of now."""
    from peft import PeftModel

    how: dict[str, Any] = {} if weights is None else {"state_dict": dict(weights)}
    if isinstance(model, PeftModel):
        how["save_embedding_layers"] = False
    with quiet_transformers():
        model.save_pretrained(str(folder), **how)  # type: ignore[operator]
        processor.save_pretrained(str(folder))
    if isinstance(model, PeftModel):
        _put_in_order(folder / "adapter_config.json")


def _put_in_order(config: Path) -> None:
    """Sort the names of modules, which peft keeps as sets: in each process they have another order."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values |= {name: sorted(values[name]) for name in _SETS if isinstance(values.get(name), list)}
    config.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU of the weights that `save_model` saves: of an adapter what is trained, else all."""
    from peft import PeftModel

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    copies: dict[int, Tensor] = {}  # tied weights stay tied
    weights = {}
    for name, tensor in model.state_dict().items():
        if isinstance(model, PeftModel) and name not in trained:
            continue
        key = tensor.data_ptr()
        if key not in copies or copies[key].shape != tensor.shape:
            copies[key] = tensor.detach().to("cpu", copy=True)
        weights[name] = copies[key]
    return weights


def weights_folder(model: nn.Module) -> str:
    """What the folder of a model's weights is called in a run: `adapter`, or `model` if all of it is trained."""
    from peft import PeftModel

    return "adapter" if isinstance(model, PeftModel) else "model"


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load what `save_model` saved back into the same model."""
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file, load_model

    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        return
    try:
        load_model(model, folder / "model.safetensors")
    except (RuntimeError, FileNotFoundError):  # transformers saves some under other names, and large ones in pieces
        kind: Any = type(model)
        if (folder / "adapter_config.json").exists():
            raise OSError(f"{folder.name} has an adapter in the place of a model") from None
        how = {"dtype": next(model.parameters()).dtype, "use_safetensors": True, "local_files_only": True}
        saved = kind.from_pretrained(str(folder), config=model.config, **how)
        model.load_state_dict(saved.state_dict())
