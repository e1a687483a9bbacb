"""Loading a pretrained model for a task, with its dropouts set, and knowing what of it is new."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from hf_accum.errors import first_line
from hf_accum.quantization import (
    head_modules,
    keep_weights_trainable_through,
    quantization_config,
    quantize_without_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pretrained:
    """A model in train mode; `new_modules` have no pretrained weights (the task's head, as a rule)."""

    model: "PreTrainedModel"
    new_modules: tuple[str, ...]


def load_tokenizer(name: str, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, able to pad.

    Raises:
        ValueError: if there is none under that name, or one that knows no words.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(_local(name), revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(_not_found("tokenizer", name, error)) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 2:  # transformers makes one of nothing at all
        raise ValueError(
            f"--model {name}: has to have the files of its tokenizer, which without them knows only "
            f"{len(tokenizer)} tokens"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    auto_class: Any,
    name: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    dropout: float | None = None,
    revision: str | None = None,
    quantization: str = "none",
    precision: str = "no",
    device: torch.device | str = "cpu",
    **config_values: Any,
) -> Pretrained:
    """Load `name` by a transformers Auto class, in float32, with `config_values` (labels, say) in its config.

    `dropout` overrides every dropout probability of the model. With `quantization` nf4 all linear layers but the
    head's have 4-bit weights, on the device at once, multiplied in accelerate's `precision`.

    Raises:
        ValueError: if there is no such model, if its weights do not fit (a head for other labels), if
            `max_length` is more than it has positions for, or if the tokenizer knows more tokens than the model.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(_local(name), revision=revision, **config_values)
    except (OSError, ValueError) as error:
        raise ValueError(_not_found("model", name, error)) from error
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if dropout is not None:
        _set_config_dropout(config, dropout)
    options: dict[str, Any] = {}
    if quantization != "none":
        with torch.device("meta"), quiet_transformers():
            heads = head_modules(auto_class.from_config(config))
        options = {
            "quantization_config": quantization_config(quantization, heads, precision),
            "device_map": {"": torch.device(device)},
        }
    try:
        with quiet_transformers():  # what is new in the model is said by the run's summary
            model, info = auto_class.from_pretrained(
                _local(name),
                config=config,
                revision=revision,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError) as error:
        raise ValueError(_not_found("model", name, error)) from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"model {name!r}: its weights cannot be read, or do not fit: if it is a classifier of other labels, "
            f"give the model that it was made from ({first_line(error)})"
        ) from error
    if quantization != "none":
        keep_weights_trainable_through(model)
    if dropout is not None:
        set_dropout(model, dropout)
    new_modules = _modules_of(model, info["missing_keys"])
    if "" in new_modules:
        raise ValueError(f"model {name!r}: none of its weights fits {type(model).__name__}")
    _check_positions(model, name, max_length)
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, nn.Embedding) and len(tokenizer) > embeddings.num_embeddings:
        raise ValueError(
            f"the tokenizer of {name!r} knows {len(tokenizer)} tokens, the model {embeddings.num_embeddings}: "
            "they do not belong together"
        )
    return Pretrained(model.train(), new_modules)


def build_without_weights(
    auto_class: Any,
    name: str,
    *,
    max_length: int,
    dropout: float | None = None,
    revision: str | None = None,
    quantization: str = "none",
    precision: str = "no",
    **config_values: Any,
) -> "PreTrainedModel":
    """The model that `load_model` would load, from its config alone, on torch's `meta` device.

    Raises:
        ValueError: if there is no such config, it is of no such model, or `max_length` is more than it has
            positions for.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(_local(name), revision=revision, **config_values)
        if config.pad_token_id is None:
            config.pad_token_id = 0
        if dropout is not None:
            _set_config_dropout(config, dropout)
        with torch.device("meta"), quiet_transformers():
            model = auto_class.from_config(config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(_not_found("model", name, error)) from error
    _check_positions(model, name, max_length)
    options = quantization_config(quantization, head_modules(model), precision)
    if options is not None:
        quantize_without_weights(model, options)
    if dropout is not None:
        set_dropout(model, dropout)
    return model.train()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' reports and progress bars: this run has its own."""
    from transformers.utils import logging

    verbosity, show_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if show_progress:
            logging.enable_progress_bar()


def num_positions(model: nn.Module) -> int | None:
    """Tokens for which a model with learned absolute positions has one; None where there is no such limit."""
    names = ("position_embeddings", "embed_positions", "wpe")
    limits = [
        # Some embeddings stand for no position: as many as an offset says, or up to that of padding.
        module.num_embeddings - getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in names
    ]
    return min(limits, default=None)


def _check_positions(model: nn.Module, name: str, max_length: int) -> None:
    positions = num_positions(model)
    if positions is not None and max_length > positions:
        raise ValueError(f"--max_length {max_length}: has to be at most {positions}, the positions that {name!r} has")


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout layer of a model, adapters included, to one probability."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = probability


def _set_config_dropout(config: Any, probability: float) -> None:
    for name, value in config.to_dict().items():
        is_number = isinstance(value, float | int) and not isinstance(value, bool)
        is_dropout = "dropout" in name or name.endswith("pdrop")
        # Leaving out whole layers is another thing, but random as well: without dropout there is none of it.
        leaves_out_layers = "layerdrop" in name or name == "drop_path_rate"
        if is_number and (is_dropout or (leaves_out_layers and probability == 0)):
            setattr(config, name, probability)
        # A head's own dropout may be None: then it takes the model's, which is set already.


def _modules_of(model: nn.Module, parameter_names: Iterable[str]) -> tuple[str, ...]:
    """The largest modules whose parameters are all among the names."""
    missing = set(parameter_names)
    found: list[str] = []
    for name, module in model.named_modules():  # parents first
        if any(name == above or name.startswith(f"{above}.") or above == "" for above in found):
            continue
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters()]
        if own and missing.issuperset(own):
            found.append(name)
    return tuple(found)


def _local(name: str) -> str:
    # An absolute path, so that an adapter finds its base model from any folder.
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _not_found(what: str, name: str, error: Exception) -> str:
    return (
        f"--model {name}: has to be a local folder, or an id of the hub, with a {what} to load ({first_line(error)})"
    )
