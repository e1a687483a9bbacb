"""Weights of an earlier result as those to start from: a head for more labels keeps what it knows of the others."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_accum.errors import UserError, first_line, shortened
from hf_accum.models.base import as_json, base_of
from hf_accum.models.pooled_classifier import CLASSIFIER
from hf_accum.models.pooled_saving import classifier_in, pooled_adapter_in, pooled_classifier_in
from hf_accum.models.quantization import head_modules
from hf_accum.models.saving import whole_weights_in
from hf_accum.models.usage import read_usage


def labels_in(result: Path) -> tuple[str, ...]:
    """The names that the outputs of a saved head have, in their order; none where it has no labels.

    Raises:
        UserError: if a file of the result cannot be read.
    """
    for file in (result / CLASSIFIER, result / "config.json"):
        if not file.exists():
            continue
        try:
            names = json.loads(file.read_text(encoding="utf-8")).get("id2label") or {}
            return tuple(str(names[key]) for key in sorted(names, key=int))
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{file}: cannot be read ({error})") from error
    return ()


def start_from(model: nn.Module, result: Path, names: Sequence[str]) -> None:
    """Load a result into a model of the same base and adapters, whose head has these names of labels.

    What the head had learned of a label goes to that label, wherever it stands now; the rows of new ones stay as they
    were drawn.

    Raises:
        UserError: if the result is of another base model, or its weights do not fit.
    """
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors import SafetensorError

    usage, own = read_usage(result), as_json(base_of(model))
    said = None if usage is None else usage.base
    if is_adapter(result) and said is not None and own is not None and _known_by(said) != _known_by(own):
        raise UserError(
            f"{result}: was trained on another base model ({_shown(said)}) than `model` is ({_shown(own)}): give the "
            "model of that run"
        )
    try:
        before, stored = _own_weights(model), _stored_weights(model, result)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{result}: cannot be loaded ({first_line(error)}): start with the flags of that run"
        ) from error
    if isinstance(model, PeftModel):  # an earlier version had adapters on layers too that the task does not read
        stored = {name: tensor for name, tensor in stored.items() if name in before or not _is_of_adapter(name)}
    fitting = _by_label(stored, before, labels_in(result), names, _heads_of(model))
    other = [name for name, tensor in fitting.items() if name not in before or before[name].shape != tensor.shape]
    if other or fitting.keys() != before.keys():
        name = min(other or before.keys() ^ fitting.keys())
        raise UserError(
            f"{result}: its weights do not fit the flags: {name} is {_shape(fitting, name)} there, and "
            f"{_shape(before, name)} here; start with the flags of that run (`lora.rank`, `lora.target_modules`, "
            "`pooling`)"
        )
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, fitting)
    else:
        model.load_state_dict(fitting)


def is_adapter(result: Path) -> bool:
    """Whether a result is an adapter, and not a whole model."""
    return (result / "adapter_config.json").exists()


def _own_weights(model: nn.Module) -> dict[str, Tensor]:
    """What is saved of a model, by the names that it is saved under."""
    from peft import PeftModel, get_peft_model_state_dict

    if isinstance(model, PeftModel):
        return dict(get_peft_model_state_dict(model, save_embedding_layers=False))
    return dict(model.state_dict())


def _stored_weights(model: nn.Module, result: Path) -> dict[str, Tensor]:
    """The same of a result of such a model, with a head of its own."""
    from peft import PeftModel
    from safetensors.torch import load_file

    pooled = pooled_classifier_in(model)
    if isinstance(model, PeftModel):
        return (
            load_file(result / "adapter_model.safetensors") if pooled is None else pooled_adapter_in(pooled, result)
        )
    if pooled is None:
        return whole_weights_in(model, result)
    encoder = whole_weights_in(pooled.base_model, result)
    of_encoder = {f"{pooled.base_model_prefix}.{name}": tensor for name, tensor in encoder.items()}
    return of_encoder | {f"classifier.{name}": tensor for name, tensor in classifier_in(result).items()}


def _heads_of(model: nn.Module) -> tuple[str, ...]:
    """What the names of the weights of a model's heads begin with."""
    from peft import PeftModel

    is_adapted = isinstance(model, PeftModel)
    base: Any = model.get_base_model() if is_adapted else model
    return tuple(f"{'base_model.model.' if is_adapted else ''}{head}." for head in head_modules(base))


def _by_label(
    stored: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    before: Sequence[str],
    names: Sequence[str],
    heads: tuple[str, ...],
) -> dict[str, Tensor]:
    """Stored weights, those of a head as rows of more labels: the others are a model's own.

    Of a pooled classifier the row behind those of the labels is the score of a window. Weights of other parts may
    have as many rows as there are labels.
    """
    if not names or not before or list(before) == list(names):
        return dict(stored)
    missing = [name for name in before if name not in names]
    if missing:
        raise UserError(
            f"`labels` {', '.join(names)}: have to have those that the run of `init_from` learned: "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        )
    places = torch.tensor([list(names).index(name) for name in before])
    fitting: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        here = own.get(name)
        fitting[name] = tensor
        if not name.startswith(heads) or _is_of_adapter(name):
            continue
        if here is None or not here.ndim or here.ndim != tensor.ndim or here.shape[1:] != tensor.shape[1:]:
            continue
        num_more = len(tensor) - len(before)
        if num_more in (0, 1) and len(here) == len(names) + num_more:
            whole = here.clone()
            whole[places] = tensor[: len(before)].to(here)
            if num_more:
                whole[-1] = tensor[-1].to(here)
            fitting[name] = whole
    return fitting


def _is_of_adapter(name: str) -> bool:
    return ".lora_" in name


def _known_by(base: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a base another one: not how its package is numbered, where the weights are known."""
    return tuple(base.get(name) for name in ("hub_id", "module", "inside", "sha256"))


def _shown(base: Mapping[str, Any]) -> str:
    return shortened(str(base.get("hub_id") or base.get("package") or base.get("sha256")), 120)


def _shape(weights: Mapping[str, Tensor], name: str) -> Any:
    return tuple(weights[name].shape) if name in weights else "not"


def with_unknown_labels(model: nn.Module, known: Sequence[str], names: Sequence[str]) -> None:
    """Let a model whose head knows some of the names of labels give logits of all, in their order, along the last
    dimension: it never means the others.

    Of a pooled classifier the score of a window stays behind them.
    """
    places = [names.index(name) for name in known]

    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        logits = output.logits
        of_all = logits.new_full((*logits.shape[:-1], len(names)), -1e4)
        of_all[..., places] = logits[..., : len(known)]
        output.logits = torch.cat([of_all, logits[..., len(known) :]], dim=-1)
        return output

    cast(Any, model).register_forward_hook(add)
