"""An adapter merged into its base by peft, in float32 layer by layer, with all weights in one type then."""

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_accum.config.trust import Trust
from hf_accum.errors import UserError, first_line
from hf_accum.models.trust import local

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What merged weights can be stored in, by name."""
_IN_FILES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored_dtype(name: str, trust: Trust) -> str:
    """The type that most weights of a model have in its safetensors; without such files what its config says.

    Types that are none of `DTYPES` count as float32.
    """
    file = _weights_file(name, trust)
    if file is None:
        from transformers import PreTrainedConfig

        values, _ = PreTrainedConfig.get_config_dict(local(name), revision=trust.revision)
        said = str(values.get("dtype") or values.get("torch_dtype") or "float32").removeprefix("torch.")
        return said if said in DTYPES else "float32"
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(size))
    numbers: dict[str, int] = {}
    for tensor, said in header.items():
        if tensor != "__metadata__":
            dtype = _IN_FILES.get(said["dtype"], "float32")
            start, end = said["data_offsets"]
            numbers[dtype] = numbers.get(dtype, 0) + end - start
    return max(numbers, key=lambda dtype: numbers[dtype], default="float32")


def _weights_file(name: str, trust: Trust) -> Path | None:
    """The safetensors of a model, or the first of them."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file

    def found(file: str) -> str | None:
        return cached_file(local(name), file, revision=trust.revision, _raise_exceptions_for_missing_entries=False)  # type: ignore[return-value]

    whole = found(SAFE_WEIGHTS_NAME)
    index = None if whole else found(SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        parts = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        whole = found(min(parts.values()))
    return None if whole is None else Path(whole)


def merge(adapted: Any, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """The base of a peft model with its adapter merged in, all its weights in `dtype`; and what is to be said of it.

    The sum is made in float32, and rounded once. A layer that is tied, and has an adapter, is untied. `adapted` is
    used up.

    Raises:
        UserError: if a weight is not finite then: it is in the adapter, or is too large for the type.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that what is merged is merged; of ties it is said below
        is_tied = _is_tied(adapted.get_base_model())
        try:
            places = Counter(id(weight) for module in adapted.modules() for weight in module._parameters.values())
            for layer in adapted.modules():
                if isinstance(layer, BaseTunerLayer):
                    base: Any = layer.get_base_layer()
                    for name, weight in list(base.named_parameters(recurse=False)):
                        if places[id(weight)] > 1:  # tied: peft would change it in its other place too
                            setattr(base, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
                    weights = list(base.parameters())
                    for weight in weights:
                        weight.data = weight.data.float()
                    layer.merge(safe_merge=True)
                    for weight in weights:
                        weight.data = weight.data.to(dtype)
            merged = adapted.merge_and_unload(safe_merge=True)
        except ValueError as error:  # peft's own look at what it has merged
            raise UserError(f"the adapter cannot be merged ({first_line(error)})") from error
    merged.to(dtype)
    for name, weight in merged.state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            named = str(dtype).removeprefix("torch.")
            raise UserError(
                f"`dtype` {named}: {name} has values that are too large for it: bfloat16 has room for them"
            )
    notes = []
    if is_tied and not _is_tied(merged):
        notes.append("the output layer was trained apart from the embeddings, and is no longer tied to them")
    return merged.eval(), notes


def _is_tied(model: Any) -> bool:
    """Whether the output layer has the weights of the embeddings."""
    try:
        embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return False
    one, other = (getattr(layer, "weight", None) for layer in (embeddings, output))
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()


def restore_config(model: Any, name: str, trust: Trust) -> None:
    """Let a model's config say of its cache what the base's own config does, and not what training wants."""
    from transformers import AutoConfig

    own = AutoConfig.from_pretrained(local(name), **trust.of_hub)
    if hasattr(own, "use_cache"):
        model.config.use_cache = own.use_cache
    elif hasattr(model.config, "use_cache"):
        del model.config.use_cache


def name_tokenizer_for_all(folder: Path) -> None:
    """Name a tokenizer's class as all versions of transformers know it: those that serve may have an earlier one."""
    file = folder / "tokenizer_config.json"
    if file.is_file():
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.get("tokenizer_class") == "TokenizersBackend":  # what version 5 calls it
            values["tokenizer_class"] = "PreTrainedTokenizerFast"
            file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
