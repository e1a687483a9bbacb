"""A pooled classifier's files: encoder or adapter as transformers and peft load them, the classifier beside."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from hf_accum.models.pooled_classifier import CLASSIFIER, CLASSIFIER_WEIGHTS, PooledClassifier

_IN_PEFT = "base_model.model."


def pooled_classifier_in(model: nn.Module) -> PooledClassifier | None:
    """The pooled classifier that a model is, or that its adapters sit in; None: it is another."""
    inside = cast(Any, getattr(model, "get_base_model", lambda: model))()
    return inside if isinstance(inside, PooledClassifier) else None


def write_pooled(
    model: nn.Module, base: PooledClassifier, folder: Path, weights: Mapping[str, Tensor] | None
) -> None:
    """Write the encoder (or the adapter, as of the encoder alone), the classifier, and how the two are used."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import save_file

    is_adapter = isinstance(model, PeftModel)
    if is_adapter:
        state = get_peft_model_state_dict(
            model, None if weights is None else dict(weights), save_embedding_layers=False
        )
    else:
        state = model.state_dict() if weights is None else weights
    of_encoder, of_classifier = _parts_of(cast(Mapping[str, Tensor], state), base, _IN_PEFT if is_adapter else "")
    if is_adapter:
        config: Any = copy.copy(model.active_peft_config)
        inside = f"{base.base_model_prefix}."
        config.target_modules = {name.removeprefix(inside) for name in model.targeted_module_names}
        config.task_type, config.modules_to_save, config.inference_mode = "FEATURE_EXTRACTION", None, True
        config.base_model_name_or_path = config.base_model_name_or_path or base.name_or_path
        config.save_pretrained(str(folder))
        of_encoder = {f"{_IN_PEFT}{name}": tensor for name, tensor in of_encoder.items()}
        save_file(of_encoder, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    else:
        cast(Any, base.base_model).save_pretrained(str(folder), state_dict=of_encoder)
    save_file(of_classifier, folder / CLASSIFIER_WEIGHTS, metadata={"format": "pt"})
    values = cast(Any, base.config)
    said = {"pooling": values.text_pooling, "problem_type": values.problem_type, "id2label": values.id2label}
    windows: Mapping[str, Any] | None = getattr(values, "text_windows", None)
    if windows is not None:
        said["windows"] = windows
    (folder / CLASSIFIER).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def pooled_adapter_in(base: PooledClassifier, folder: Path) -> dict[str, Tensor]:
    """The weights of an adapter and its classifier, by their names in the model that they belong to."""
    from safetensors.torch import load_file

    adapter = load_file(folder / "adapter_model.safetensors")
    inside = f"{_IN_PEFT}{base.base_model_prefix}."
    state = {f"{inside}{name.removeprefix(_IN_PEFT)}": tensor for name, tensor in adapter.items()}
    return state | {f"{_IN_PEFT}classifier.{name}": tensor for name, tensor in classifier_in(folder).items()}


def classifier_in(folder: Path) -> dict[str, Tensor]:
    """The classifier's own weights."""
    from safetensors.torch import load_file

    return load_file(folder / CLASSIFIER_WEIGHTS)


def load_pooled(model: nn.Module, base: PooledClassifier, folder: Path) -> None:
    """Load the adapter, where there is one, and the classifier back into the same model."""
    from peft import PeftModel, set_peft_model_state_dict

    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, pooled_adapter_in(base, folder))
        return
    base.classifier.load_state_dict(classifier_in(folder))


def _parts_of(
    state: Mapping[str, Tensor], base: PooledClassifier, before: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the encoder and those of the classifier, by their names in it."""
    parts = []
    for part in (base.base_model_prefix, "classifier"):
        start = f"{before}{part}."
        parts.append({n.removeprefix(start): t.contiguous() for n, t in state.items() if n.startswith(start)})
    assert sum(map(len, parts)) == len(state), "a weight of neither encoder nor classifier"
    return parts[0], parts[1]
