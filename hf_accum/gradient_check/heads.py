"""transformers' heads: the class that makes each, made-up rows for it, and its own loss."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_accum.accumulation.losses import IGNORE
from hf_accum.errors import UserError

HEADS = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "multiple_choice": "AutoModelForMultipleChoice",
    "next_sentence_prediction": "AutoModelForNextSentencePrediction",
    "image_classification": "AutoModelForImageClassification",
    "semantic_segmentation": "AutoModelForSemanticSegmentation",
    "audio_classification": "AutoModelForAudioClassification",
}
"""The heads that rows are made up for, and transformers' class of each."""

_NUM_EXAMPLES = 8
_LENGTHS = (14, 9, 5, 17, 11, 7, 16, 12)
"""Of texts, in tokens: short, and of ragged lengths."""
_NUM_CHOICES = 3
_NUM_SAMPLES = 6400  # of a sound
_SIDE = 32  # of an image where the model takes any


def own_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's own loss of labels, as a sum: with the number of items 1 where the Trainer would give it a number.

    Raises:
        UserError: if the model has no loss of its own.
    """
    count = {"num_items_in_batch": 1} if "labels" in batch and _accepts_count(model) else {}
    loss = model(**batch, **count).loss
    if loss is None:
        raise UserError(f"{type(model).__name__} gives no loss of its own for {', '.join(batch)}")
    return loss


def _accepts_count(model: nn.Module) -> bool:
    """As the Trainer asks."""
    accepts = getattr(model, "accepts_loss_kwargs", None)
    if accepts is not None:
        return bool(accepts)
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def made_up_rows(model: Any, head: str, seed: int = 0) -> dict[str, Tensor]:
    """A batch of 8 random examples with labels for a model with a head: texts of 5 to 17 tokens, images, sounds."""
    draw = torch.Generator().manual_seed(seed)
    if head in ("image_classification", "semantic_segmentation"):
        return _images(model, head, draw)
    if head == "audio_classification":
        return _sounds(model, draw)
    return _texts(model, head, draw)


def _texts(model: Any, head: str, draw: torch.Generator) -> dict[str, Tensor]:
    config, known = model.config.get_text_config(), inspect.signature(model.forward).parameters
    positions = getattr(config, "max_position_embeddings", None) or max(_LENGTHS) + 8
    longest = max(3, min(max(_LENGTHS), int(positions) - 8))
    lengths = torch.tensor([min(length, longest - place % 2) for place, length in enumerate(_LENGTHS)])
    if head == "multiple_choice":
        lengths = lengths.repeat_interleave(_NUM_CHOICES)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    pad, end = (_token(getattr(config, f"{name}_token_id", None)) for name in ("pad", "eos"))
    ids = _tokens(config, mask.shape, draw)
    if end is not None:
        ids[torch.arange(len(ids)), lengths - 1] = end  # BART and T5 read a text's class there
    ids = ids.masked_fill(mask == 0, 0 if pad is None else pad)
    batch = {"input_ids": ids} | ({"attention_mask": mask} if "attention_mask" in known else {})
    match head:
        case "token_classification":
            batch["labels"] = _labels(model, mask.shape, draw).masked_fill(mask == 0, IGNORE)
            batch["labels"][torch.rand(mask.shape, generator=draw) < 0.3] = IGNORE
            batch["labels"][:, 1] = 0  # at least one that counts
        case "question_answering":
            starts = (torch.rand(len(ids), generator=draw) * (lengths - 1)).long()
            batch |= {"start_positions": starts, "end_positions": torch.minimum(starts + 1, lengths - 1)}
        case "masked_lm":
            hidden = (torch.rand(mask.shape, generator=draw) < 0.3) & (mask == 1)
            hidden[:, 1] = True
            batch["labels"] = torch.where(hidden, _tokens(config, mask.shape, draw), IGNORE)
        case "causal_lm":
            batch["labels"] = ids.masked_fill(mask == 0, IGNORE)
        case "seq2seq_lm":
            batch["labels"] = ids.flip(0).masked_fill(mask.flip(0) == 0, IGNORE)
        case "multiple_choice":
            batch = {name: of.view(_NUM_EXAMPLES, _NUM_CHOICES, -1) for name, of in batch.items()}
            batch["labels"] = torch.randint(_NUM_CHOICES, (_NUM_EXAMPLES,), generator=draw)
        case "next_sentence_prediction":
            batch["labels"] = torch.randint(2, (_NUM_EXAMPLES,), generator=draw)
        case _:
            batch["labels"] = _labels(model, (_NUM_EXAMPLES,), draw)
    return batch


def _tokens(config: Any, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Tokens that are not special: these stand at the ends of a vocabulary, as a rule."""
    size = int(config.vocab_size)
    special = {_token(getattr(config, f"{name}_token_id", None)) for name in ("pad", "eos", "bos", "cls", "sep")}
    usual = torch.tensor([token for token in range(size // 4, size - size // 4) if token not in special])
    return usual[torch.randint(len(usual), shape, generator=draw)]


def _token(value: Any) -> int | None:
    value = value[0] if isinstance(value, list | tuple) and value else value
    return value if isinstance(value, int) and value >= 0 else None


def _labels(model: Any, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    if model.config.num_labels == 1:
        return torch.randn(shape, generator=draw)
    return torch.randint(model.config.num_labels, shape, generator=draw)


def _images(model: Any, head: str, draw: torch.Generator) -> dict[str, Tensor]:
    config = getattr(model.config, "vision_config", model.config)
    side = getattr(config, "image_size", None) or _SIDE
    if isinstance(side, Mapping):
        side = (side["height"], side["width"])
    height, width = (side, side) if isinstance(side, int) else tuple(side)[-2:]
    channels = getattr(config, "num_channels", None) or 3
    images = torch.randn(_NUM_EXAMPLES, channels, height, width, generator=draw)
    if head == "image_classification":
        return {"pixel_values": images, "labels": _labels(model, (_NUM_EXAMPLES,), draw)}
    labels = _labels(model, (_NUM_EXAMPLES, height, width), draw)
    ignored = getattr(model.config, "semantic_loss_ignore_index", 255)
    for place in range(_NUM_EXAMPLES):  # borders of other widths count for nothing
        labels[place, : 1 + place % 4] = ignored
    return {"pixel_values": images, "labels": labels}


def _sounds(model: Any, draw: torch.Generator) -> dict[str, Tensor]:
    config, name = model.config, model.main_input_name
    labels = _labels(model, (_NUM_EXAMPLES,), draw)
    if name == "input_features" and hasattr(config, "max_source_positions"):  # Whisper
        shape = (_NUM_EXAMPLES, config.num_mel_bins, 2 * config.max_source_positions)
    elif hasattr(config, "num_mel_bins") and hasattr(config, "max_length") and name == "input_values":  # AST
        shape = (_NUM_EXAMPLES, config.max_length, config.num_mel_bins)
    elif name == "input_features":
        shape = (_NUM_EXAMPLES, 40, config.feature_projection_input_dim)
    else:
        shape = (_NUM_EXAMPLES, _NUM_SAMPLES)
    return {name: torch.randn(shape, generator=draw), "labels": labels}
