"""Weights of an adapter or a model: saved, and loaded back."""

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from hf_accum.files import fill_folder_atomically
from hf_accum.models.base import as_json, base_of, declare
from hf_accum.models.loading import quiet_transformers
from hf_accum.models.pooled_saving import load_pooled, pooled_classifier_in, write_pooled
from hf_accum.models.usage import Usage, write_usage


class Processor(Protocol):
    """What makes a model's inputs: a tokenizer, or an image processor."""

    def save_pretrained(self, save_directory: str, /) -> object:
        """Write its files into a folder."""
        ...


_SETS = ("target_modules", "modules_to_save", "exclude_modules")


def save_model(model: nn.Module, processor: Processor, folder: Path, usage: Usage | None = None) -> None:
    """Save an adapter (with the head), or a whole model, and what makes its inputs: the folder is there whole or not.

    `model` is the one that transformers or peft made, not a wrapper of it. `usage` goes into the folder too.
    """
    fill_folder_atomically(folder, lambda partial: write_model(model, processor, partial, usage=usage))


def write_model(
    model: nn.Module,
    processor: Processor,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
    *,
    usage: Usage | None = None,
) -> None:
    """Write an adapter or a model into a folder; `weights`, as `weights_of` gave them, instead of those of now.

    No file says where on this machine the base is. An adapter with a head has the model's config beside it, as
    `config.json`: peft keeps none, and the labels' names, in the head's order, are there.
    """
    from peft import PeftModel

    how: dict[str, Any] = {} if weights is None else {"state_dict": dict(weights)}
    if isinstance(model, PeftModel):
        how["save_embedding_layers"] = False
    pooled = pooled_classifier_in(model)
    with quiet_transformers():
        if pooled is not None:
            write_pooled(model, pooled, folder, weights)
        else:
            model.save_pretrained(str(folder), **how)  # type: ignore[operator]
        processor.save_pretrained(str(folder))
    base = base_of(model, str((usage.base or {}).get("origin", "")) if usage else "")
    if isinstance(model, PeftModel):
        (folder / "README.md").unlink(missing_ok=True)  # peft's template, which is empty
        _put_in_order(folder / "adapter_config.json")
        if base is not None:
            declare(folder / "adapter_config.json", base)
        if pooled is not None or model.active_peft_config.modules_to_save:  # type: ignore[union-attr]
            _write_config(model, folder)
    if usage is not None:
        if pooled is not None:
            usage = replace(usage, pooling=cast(Any, pooled.config).text_pooling)
        write_usage(replace(usage, base=as_json(base)), folder)


def _write_config(model: nn.Module, folder: Path) -> None:
    """The config of the model that an adapter is put on, which holds the labels.

    The base is loaded as it is stored, also where it was trained on in 4 bits.
    """
    config = copy.deepcopy(cast(Any, model).get_base_model().config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.to_json_file(str(folder / "config.json"))


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
    from safetensors.torch import load_file

    pooled = pooled_classifier_in(model)
    if pooled is not None:
        load_pooled(model, pooled, folder)
    elif isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    if not isinstance(model, PeftModel):
        _load_whole(model if pooled is None else pooled.base_model, folder)


def _load_whole(model: nn.Module, folder: Path) -> None:
    """Load the weights that transformers saved of a whole model back into the same model."""
    from safetensors.torch import load_model

    try:
        load_model(model, folder / "model.safetensors")
    except (RuntimeError, FileNotFoundError):  # transformers saves some under other names, and large ones in pieces
        model.load_state_dict(whole_weights_in(model, folder, model.config))


def whole_weights_in(model: nn.Module, folder: Path, config: Any = None) -> dict[str, Tensor]:
    """The weights that transformers saved of a model of this class, by their names in it; `config`: another one.

    Raises:
        OSError: if there is an adapter.
    """
    if (folder / "adapter_config.json").exists():
        raise OSError(f"{folder.name} has an adapter in the place of a model")
    kind: Any = type(model)
    how = {"dtype": next(model.parameters()).dtype, "use_safetensors": True, "local_files_only": True}
    how |= {} if config is None else {"config": config}
    return dict(kind.from_pretrained(str(folder), **how).state_dict())
