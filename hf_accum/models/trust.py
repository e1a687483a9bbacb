"""What may come in with a model of others: which revision of it, code, pickled weights."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_accum.config.trust import Trust
from hf_accum.errors import UserError


def local(name: str) -> str:
    """A folder by its absolute path, so that an adapter finds its base model from any folder; an id as it is."""
    return str(Path(name).resolve()) if os.path.isdir(name) else name


def check_model_files(name: str, trust: Trust) -> dict[str, Any]:
    """What a model's config.json says, read as data, with all in it refused that would bring in something else.

    Raises:
        UserError: for a revision of a local folder, an adapter in the place of a model, code of another repository
            that no revision pins, attention kernels of the hub, or weights that are not in safetensors.
        OSError: if there is no such config.
    """
    from transformers import PreTrainedConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    if os.path.isdir(name) and (trust.revision or trust.code_revision):
        flag = "revision" if trust.revision else "code_revision"
        raise UserError(
            f"`{flag}` {trust.revision or trust.code_revision}: has to be left out with a local folder ({name}), "
            "which has only what is in it"
        )
    if find_adapter_config_file(local(name), revision=trust.revision) is not None:
        raise UserError(
            f"`model` {name}: is an adapter, or has one in it, made for weights of another place: give the model, "
            "with the adapter merged into it (peft's merge_and_unload) if it is to be trained on"
        )
    values, _ = PreTrainedConfig.get_config_dict(local(name), revision=trust.revision)
    if not isinstance(values, dict):
        raise UserError(f"`model` {name}: its config.json has to be a JSON object")
    # Otherwise weights that are not safetensors may be fetched from a pull request that a converter opens.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "true"
    if trust.trust_remote_code:
        _check_code(name, values.get("auto_map"), trust)
    elif kernels := next((k for k in _attention_kernels(values) if "/" in k), None):
        raise UserError(
            f"`model` {name}: its config.json asks for attention kernels from the hub ({kernels}), which are code: "
            "`trust_remote_code` allows it"
        )
    weights = str(values.get("transformers_weights") or "")
    if (
        weights
        and not trust.allow_pickle_weights
        and not weights.endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise UserError(f"`model` {name}: its weights are in {weights}, {_PICKLE_RULE}")
    folder = Path(name)
    if os.path.isdir(name) and not trust.allow_pickle_weights and not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled:
            raise UserError(f"`model` {name}: its weights are in {pickled[0]}, {_PICKLE_RULE}")
    return values


_PICKLE_RULE = (
    "a pickle: has to have them in safetensors (`model.save_pretrained` writes them), or `allow_pickle_weights` "
    "reads them, as tensors only"
)


def _attention_kernels(values: Any) -> Iterator[str]:
    """What a config, or one within it, asks for."""
    if isinstance(values, dict):
        for key, value in values.items():
            if str(key).strip("_").startswith("attn_implementation"):
                yield from map(str, value.values() if isinstance(value, dict) else [value])
            else:
                yield from _attention_kernels(value)
    elif isinstance(values, list):
        for value in values:
            yield from _attention_kernels(value)


def _check_code(name: str, auto_map: Any, trust: Trust) -> None:
    if not isinstance(auto_map, dict) or trust.revision is None or trust.code_revision is not None:
        return
    references = [ref for value in auto_map.values() for ref in (value if isinstance(value, list) else [value])]
    for reference in references:
        if "--" in str(reference):
            raise UserError(
                f"`revision` {trust.revision}: does not pin the code of {name}, which is in another repository, "
                f"{str(reference).partition('--')[0]}: give `code_revision` too"
            )
