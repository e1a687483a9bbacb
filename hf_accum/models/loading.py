"""Loading a pretrained model for a task, with its dropouts set, and knowing what of it is new."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from hf_accum.config.trust import Trust
from hf_accum.device.malloc import return_freed_memory
from hf_accum.device.out_of_memory import Failure, classify
from hf_accum.errors import UserError, first_line
from hf_accum.models.dropout import set_config_dropout, set_dropout
from hf_accum.models.heads import check_labels, other_labels, renew_head, trained_head
from hf_accum.models.precision import kept_in_float32, loading_in_float32
from hf_accum.models.quantization import (
    check_quantized,
    head_modules,
    keep_weights_trainable_through,
    quantization_config,
    quantize_without_weights,
)
from hf_accum.models.trust import check_model_files, local

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")


@dataclass(frozen=True)
class Pretrained:
    """A model in train mode; `new_modules` have no pretrained weights (the task's head, as a rule)."""

    model: "PreTrainedModel"
    new_modules: tuple[str, ...]


def load_model(
    auto_class: Any,
    name: str,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    max_length: int,
    task_type: str | None = None,
    dropout: float | None = None,
    trust: Trust = Trust(),  # noqa: B008 (frozen)
    quantization: str = "none",
    dtype: torch.dtype = torch.float32,
    precision: str = "no",
    device: torch.device | str = "cpu",
    replace_head: bool = False,
    **config_values: Any,
) -> Pretrained:
    """Load `name` by a transformers Auto class, with `config_values` (labels, say) in its config.

    Its weights are read into `dtype` at once, those of a head that `task_type` (of a `ModelSpec`) trains and of
    BatchNorm into float32. `dropout` overrides every dropout probability of the model. With `quantization` nf4 all
    linear layers but the head's have 4-bit weights, on the device at once, multiplied in accelerate's `precision`;
    from then on the process gives freed memory back (`return_freed_memory`). `trust` says what may come in with it.
    A model of images has no tokenizer. With `replace_head` a head for other labels is new, and so are other weights
    that do not fit.

    Raises:
        UserError: if there is no such model, if its weights do not fit (unless they are replaced), if
            `max_length` is more than it has positions for, or if the tokenizer is that of another model.
    """
    config, said = _config(name, trust, config_values)
    if tokenizer is not None and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if dropout is not None:
        set_config_dropout(config, dropout)
    options: dict[str, Any] = {}
    in_float32: AbstractContextManager[Any] = nullcontext()
    if quantization != "none" or dtype != torch.float32:
        with torch.device("meta"), quiet_transformers():
            empty = auto_class.from_config(config, trust_remote_code=trust.trust_remote_code)
        in_float32 = loading_in_float32(type(empty), kept_in_float32(empty, trained_head(empty, task_type)))
        if quantization != "none":
            return_freed_memory()  # else the host may keep more of what a weight was before than its file has
            options = {
                "quantization_config": quantization_config(quantization, head_modules(empty), precision),
                "device_map": {"": torch.device(device)},
            }
    with in_float32, quiet_transformers():  # what is new in the model is said by the run's summary
        model, info = loaded(
            "weights",
            name,
            lambda: auto_class.from_pretrained(
                local(name),
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **trust.of_hub,
                **trust.of_weights,
                **options,
            ),
        )
    new_head = ", or a new head by `ignore_mismatched_sizes`" if tokenizer is None else ""
    missing = set(info["missing_keys"])
    if replace_head:
        missing |= {weight for weight, _, _ in info["mismatched_keys"]}
        if other_labels(said.get("id2label"), config_values.get("id2label")):
            missing |= renew_head(model)
    elif info["mismatched_keys"]:
        weight, stored, wanted = min(info["mismatched_keys"], key=lambda mismatch: mismatch[0])
        raise UserError(
            f"model {name!r}: its weights do not fit: {weight} is {tuple(stored)} there, and has to be "
            f"{tuple(wanted)}; if it is a classifier of other labels, give the model that it was made from" + new_head
        )
    _cast_to_float32(model, task_type)  # what is new in them too
    model.config.use_cache = False  # of keys and values for generation: nothing that training needs
    if quantization != "none":
        check_quantized(model)
        keep_weights_trainable_through(model)
    if dropout is not None:
        set_dropout(model, dropout)
    new_modules = _modules_of(model, missing)
    if "" in new_modules:
        raise UserError(f"model {name!r}: none of its weights fits {type(model).__name__}")
    if not set(head_modules(model)) & set(new_modules):
        check_labels(name, said.get("id2label"), config_values.get("id2label"), new_head)
    _check_positions(model, name, max_length)
    if tokenizer is not None:
        _check_tokenizer(model, name, tokenizer)
    return Pretrained(model.train(), new_modules)


def labels_in_order_of_head(
    name: str,
    labels: tuple[str, ...],
    trust: Trust = Trust(),  # noqa: B008 (frozen)
) -> tuple[str, ...]:
    """The same labels, in the order of a model's trained head where that tells just these."""
    said = loaded("model", name, lambda: check_model_files(name, trust))
    known = other_labels(said.get("id2label"), dict(enumerate(labels)))
    return labels if known is None or sorted(known) != sorted(labels) else tuple(known)


def build_without_weights(
    auto_class: Any,
    name: str,
    *,
    max_length: int,
    task_type: str | None = None,
    dropout: float | None = None,
    trust: Trust = Trust(),  # noqa: B008 (frozen)
    quantization: str = "none",
    dtype: torch.dtype = torch.float32,
    precision: str = "no",
    **config_values: Any,
) -> "PreTrainedModel":
    """The model that `load_model` would load, from its config alone, on torch's `meta` device.

    Raises:
        UserError: if there is no such config, it is of no such model, or `max_length` is more than it has
            positions for.
    """
    config, _ = _config(name, trust, config_values)
    if getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = 0
    if dropout is not None:
        set_config_dropout(config, dropout)
    with torch.device("meta"), quiet_transformers():
        model = loaded(
            "model",
            name,
            lambda: auto_class.from_config(config, dtype=dtype, trust_remote_code=trust.trust_remote_code),
        )
    model.config.use_cache = False
    _check_positions(model, name, max_length)
    _cast_to_float32(model, task_type)
    options = quantization_config(quantization, head_modules(model), precision)
    if options is not None:
        quantize_without_weights(model, options, dtype)
    if dropout is not None:
        set_dropout(model, dropout)
    return model.train()


def _cast_to_float32(model: "PreTrainedModel", task_type: str | None) -> None:
    for module in kept_in_float32(model, trained_head(model, task_type)):
        model.get_submodule(module).float()


def _config(name: str, trust: Trust, config_values: Mapping[str, Any]) -> tuple["PreTrainedConfig", dict[str, Any]]:
    """A model's config with values of ours in it, and what it says itself."""
    from transformers import AutoConfig

    with quiet_transformers():
        said = loaded("model", name, lambda: check_model_files(name, trust))
        config = loaded(
            "model", name, lambda: AutoConfig.from_pretrained(local(name), **trust.of_hub, **config_values)
        )
    if (labels := config_values.get("id2label")) is not None and config.num_labels != len(labels):
        config.num_labels = len(labels)  # a field of its own, as of PVT, that does not follow the names
        config.id2label, config.label2id = dict(labels), {name: number for number, name in labels.items()}
    return config, said


def loaded(what: str, name: str | None, load: Callable[[], T]) -> T:
    """What `load` loads.

    Raises:
        UserError: if it cannot: files of others can be wrong in any way, and so anything may be raised. A lack of
            memory is left as it is.
    """
    if name is None:  # of a recipe of one's own, which hands its flag on
        raise UserError(
            "`model` is not given: has to be a folder or an id of the hub; this recipe has none of its own"
        )
    try:
        return load()
    except Exception as error:
        if classify(error) is Failure.OUT_OF_MEMORY or isinstance(error, UserError):
            raise
        said = first_line(error)
        if "custom code" in str(error):
            said += "; `trust_remote_code` runs its code, which is to be read first"
        if what == "weights" and not isinstance(error, OSError):
            raise UserError(f"model {name!r}: its weights cannot be read ({said})") from error
        if what == "weights":
            what = "model in safetensors"
            said += "; `allow_pickle_weights` reads pytorch_model.bin too, as tensors only"
        raise UserError(
            f"`model` {name}: has to be a local folder, or an id of the hub, with a {what} to load ({said})"
        ) from error


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
    limits = [
        # Some embeddings stand for no position: as many as an offset says, or up to that of padding.
        module.num_embeddings - getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
        for module in _position_embeddings(model)
    ]
    return min(limits, default=None)


def _position_embeddings(model: nn.Module) -> list[nn.Embedding]:
    names = ("position_embeddings", "embed_positions", "wpe")
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in names
    ]


def _check_positions(model: nn.Module, name: str, max_length: int) -> None:
    positions = num_positions(model)
    if positions is not None and max_length > positions:
        raise UserError(f"`max_length` {max_length}: has to be at most {positions}, the positions that {name!r} has")


def _check_tokenizer(model: "PreTrainedModel", name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer of another model, as far as can be seen, and have the model know the one's padding."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # of characters, by hashes of them, as CANINE's: any token has some
        embeddings = None
    highest = max(tokenizer.get_vocab().values(), default=0)
    if isinstance(embeddings, nn.Embedding) and highest >= embeddings.num_embeddings:
        raise UserError(
            f"the tokenizer of {name!r} knows {highest + 1} tokens, the model {embeddings.num_embeddings}: they do "
            "not belong together"
        )
    padding = tokenizer.pad_token_id
    assert isinstance(padding, int)
    counted_from = {module.padding_idx for module in _position_embeddings(model)} - {None}
    if counted_from and counted_from != {padding}:
        raise UserError(
            f"the tokenizer of {name!r} pads with token {padding}, the model counts positions from its padding token "
            f"{', '.join(map(str, counted_from))}: they do not belong together"
        )
    model.config.pad_token_id = padding  # heads of decoders look for the last token that is none
    if padding == tokenizer.eos_token_id and not counted_from and isinstance(embeddings, nn.Embedding):
        embeddings.padding_idx = None  # the token stands in texts too: its embedding is trained as any other


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
