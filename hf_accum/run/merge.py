"""A run's adapter merged into its base: a folder that plain transformers loads, compared before it is there."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.byte_sizes import format_bytes
from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.trust import Trust
from hf_accum.errors import UserError
from hf_accum.files import check_vacant, fill_folder_atomically, free_bytes, why_not_written, write_atomically
from hf_accum.models.base import from_json
from hf_accum.models.loading import quiet_transformers
from hf_accum.models.merging import DTYPES, merge, name_tokenizer_for_all, restore_config, stored_dtype
from hf_accum.models.precision import autocast_of, fits_in_float32, in_float32
from hf_accum.models.saving import Processor, write_model
from hf_accum.models.spec import ModelSpec
from hf_accum.models.usage import read_usage
from hf_accum.run.card import card_of
from hf_accum.run.evaluation import CALIBRATION
from hf_accum.run.finished import load_result
from hf_accum.run.result import check_through

_LEAST = 1e-5
_MOST_TEXTS = 16
_MOST_PLACES = 64
"""Of the outputs of a text or an image: its last ones, or a language model's logits would fill the memory."""


@dataclass(frozen=True)
class Merged:
    """What was written, and how near its outputs are to those of the adapter, one tensor (places, width) a text."""

    dtype: str
    notes: tuple[str, ...]
    of_adapter: Sequence[Tensor]
    of_merged: Sequence[Tensor]
    difference: float
    """The largest."""
    allowed: float


def check_adapter(run: Path) -> Path:
    """The adapter of a run that is through.

    Raises:
        UserError: if it is no run, one that is not through, or one that trained all weights.
    """
    result = check_through(run)
    if not (result / "adapter_config.json").is_file():
        raise UserError(
            f"{run}: has no adapter, and nothing to merge: all weights were trained. {result} is the whole model, "
            "which transformers loads as it is"
        )
    return result


def merge_into(
    output: Path,
    run: Path,
    spec: ModelSpec,
    processor: Processor,
    config: RecipeConfig,
    task: Any,
    examples: Sequence[Example],
    dtype: str | None = None,
) -> Merged:
    """Write the base of a run with its adapter merged in, in `dtype` or that of the base's file; on the CPU.

    What is written is loaded by transformers, and compared with the adapter on `examples` of the task, in float32,
    where the model is small enough for that. They differ by at most 1e-5 (of the largest output, where that is more
    than 1), or three times what it does to change each weight as rounding to the type may.

    Raises:
        UserError: as `check_adapter`, `check_vacant`, `load_result` and `merge` do; if outputs differ by more than
            the type explains, or the folder cannot be written. Nothing is written then.
    """
    adapter = check_adapter(run)
    check_vacant(output)
    stored = stored_dtype(spec.name, config.trust)
    into = DTYPES[dtype or stored]
    spec = replace(spec, prepare=None)
    how: dict[str, Any] = {
        "quantization": "none",
        "frozen_dtype": "auto",
        "dropout": None,
        "activation_offload": False,
    }
    loading_in = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[stored]
    adapted = load_result(adapter, spec, processor, replace(config, **how), torch.device("cpu"), loading_in)
    batches = [_inputs(task, part) for part in inputs_of(examples)[:_MOST_TEXTS]]
    of_adapter = _outputs(adapted, batches)
    merged, notes = merge(adapted, into)
    restore_config(merged, spec.name, config.trust)
    del adapted
    if config.quantization != "none":
        notes.append(
            f"the adapter was trained on a base in 4 bits ({config.quantization}), and is merged into the base as it "
            "is stored: the two are compared on that one"
        )
    if dtype is not None and dtype != stored:
        notes.append(f"the base is stored in {stored}")
    _check_room(output, merged)
    usage = read_usage(adapter)

    def fill(partial: Path) -> Merged:
        write_model(merged, processor, partial, usage=usage)
        merged.to("meta")  # what is loaded below takes its place in memory
        name_tokenizer_for_all(partial)
        if (adapter / CALIBRATION).is_file():
            shutil.copyfile(adapter / CALIBRATION, partial / CALIBRATION)
        named = dtype or stored
        written = read_usage(partial)
        base = from_json(written.base) if written else None
        which = f" ({base.declared})" if base else ""
        card = card_of(run, partial, f"the adapter is merged into its base{which}, in {named}")
        write_atomically(partial / "README.md", card)
        compared = _compared(spec, partial, of_adapter, batches, into, config.trust)
        return Merged(named, tuple(notes), *compared)

    made: list[Merged] = []
    try:
        fill_folder_atomically(output.absolute(), lambda partial: made.append(fill(partial)))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{output}: could not be written ({why_not_written(output, error)}); nothing is left of it"
        ) from error
    return made[0]


def _inputs(task: Any, example: Example) -> dict[str, Tensor]:
    batch = task.collate([example], example.length)
    return dict(batch if isinstance(batch, Mapping) else batch[0])


def _outputs(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> list[Tensor]:
    """The logits (of an encoder the states) of each text or image, those of its last places."""
    model.eval()
    is_small = fits_in_float32(model)
    outputs = []
    with torch.no_grad(), in_float32(model) if is_small else nullcontext():
        for batch in batches:
            with nullcontext() if is_small else autocast_of(model):
                given = model(**batch)
            logits = getattr(given, "logits", None)
            states = given.last_hidden_state if logits is None else logits
            outputs.append(states.float().flatten(0, -2)[-_MOST_PLACES:].clone())
    return outputs


def _compared(
    spec: ModelSpec,
    folder: Path,
    of_adapter: Sequence[Tensor],
    batches: Sequence[Mapping[str, Tensor]],
    dtype: torch.dtype,
    trust: Trust,
) -> tuple[Sequence[Tensor], Sequence[Tensor], float, float]:
    """Both outputs, their largest difference, and the one that the type explains."""
    from transformers import AutoConfig

    remote = {"trust_remote_code": trust.trust_remote_code}
    with quiet_transformers():
        how: dict[str, Any] = {"config": AutoConfig.from_pretrained(str(folder), **remote), **remote}
        model = spec.auto_class.from_pretrained(str(folder), dtype=dtype, **how)
        if fits_in_float32(model):
            model.float()
    of_merged = _outputs(model, batches)
    difference = _largest(of_adapter, of_merged)
    _shake(model, dtype)
    allowed = _LEAST * max(1.0, *(float(one.abs().max()) for one in of_adapter))
    allowed = max(allowed, 3 * _largest(of_merged, _outputs(model, batches)))
    named = str(dtype).removeprefix("torch.")
    if not difference <= allowed:
        raise UserError(
            f"the merged model does not do what the adapter does: their outputs differ by up to {difference:.3g}, "
            f"and {named} explains {allowed:.3g}; nothing is written"
            + ("" if dtype == torch.float32 else "; `dtype` float32 keeps the adapter as it was trained")
        )
    return of_adapter, of_merged, difference, allowed


def _largest(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    differences = [(a - b).abs().max() for a, b in zip(one, other, strict=True)]
    return float(torch.stack(differences).max())


def _shake(model: nn.Module, dtype: torch.dtype) -> None:
    """Change each weight by up to what rounding it to a type does; in that type by up to a unit in its last place."""
    draw = torch.Generator().manual_seed(0)
    weights = {w.data_ptr(): w for w in model.state_dict().values() if w.is_floating_point()}
    for weight in weights.values():
        most = torch.finfo(dtype).eps * (1 if weight.dtype == dtype else 0.5)
        weight.mul_(1 + most * (2 * torch.rand(weight.shape, generator=draw) - 1))


def _check_room(output: Path, model: nn.Module) -> None:
    weights = {w.data_ptr(): w for w in model.state_dict().values()}
    num_bytes = sum(w.numel() * w.element_size() for w in weights.values())
    free = free_bytes(output)
    if free < num_bytes:
        raise UserError(
            f"{output}: the merged model takes {format_bytes(num_bytes)}, and the disk has {format_bytes(free)} "
            "left: make room there, or give another place"
        )
