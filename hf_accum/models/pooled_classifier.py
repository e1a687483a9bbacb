"""A classifier of texts on the pooled states of any encoder: their mean, or their largest values."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_accum.config.long_texts import TextWindows
from hf_accum.errors import UserError

StatePooling = Literal["mean", "max"]
CLASSIFIER_WEIGHTS, CLASSIFIER = "classifier.safetensors", "classifier.json"
"""Files of a trained one, beside those of its encoder."""


def pool_states(states: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """One vector for each text, (num_texts, width) in float32: the mean, or the largest, of its tokens' states.

    `states` is (num_texts, length, width), `attention_mask` (num_texts, length) with 0 at padding; None: no padding.
    """
    states = states.float()
    if attention_mask is None:
        return states.mean(1) if pooling == "mean" else states.amax(1)
    is_token = attention_mask[..., None] != 0
    if pooling == "mean":
        return (states * is_token).sum(1) / is_token.sum(1)
    return states.masked_fill(~is_token, float("-inf")).amax(1)


class PooledClassifier(PreTrainedModel):
    """An encoder of transformers, `base_model`, and a linear `classifier` on its pooled last states.

    `config` is that of the encoder, with `num_labels` classes and `text_pooling`, mean or max. The pooled vector is
    normalised (a layer norm without weights), so that one learning rate suits encoders of any scale. Where
    `text_windows` (the values of `TextWindows`, or None) are pooled by attention, each has a score behind its logits.

    Raises:
        UserError: if the model is no encoder (or decoder) alone.
    """

    config: PreTrainedConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True  # as the encoder

    def __init__(self, config: PreTrainedConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.loss_type = "ForSequenceClassification"  # by which transformers finds the loss for labels
        values = cast(Any, config)
        if getattr(config, "is_encoder_decoder", False):
            kind = type(config).__name__
            raise UserError(f"`pooling` {values.text_pooling}: {kind} is of an encoder and a decoder: has to be cls")
        if encoder is None:
            encoder = cast(PreTrainedModel, AutoModel.from_config(config))
        self.base_model_prefix = encoder.base_model_prefix or "encoder"
        setattr(self, self.base_model_prefix, encoder)
        self.supports_gradient_checkpointing = encoder.supports_gradient_checkpointing
        num_scores = int(_have_scores(getattr(config, "text_windows", None)))
        self.classifier = nn.Linear(values.hidden_size, values.num_labels + num_scores)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The classifier as torch does it; the encoder does its own."""

    def forward(
        self, *, attention_mask: Tensor | None = None, labels: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Logits (num_texts, num_labels), and the scores; with `labels` also transformers' loss of the logits."""
        given = {name: value for name, value in inputs.items() if value is not None}
        states = self.base_model(attention_mask=attention_mask, **given).last_hidden_state
        vectors = pool_states(states, attention_mask, cast(Any, self.config).text_pooling)
        vectors = F.layer_norm(vectors, vectors.shape[-1:])
        logits = self.classifier(vectors.to(self.classifier.weight.dtype))
        if labels is None:
            return SequenceClassifierOutput(logits=logits)
        of_labels = logits[:, : cast(Any, self.config).num_labels]
        loss = self.loss_function(labels=labels, pooled_logits=of_labels, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


@dataclass(frozen=True)
class AutoPooledClassifier:
    """Makes a `PooledClassifier` of any encoder, as transformers' Auto classes make their models."""

    pooling: StatePooling
    windows: TextWindows | None = None

    def from_config(self, config: PreTrainedConfig, **how: Any) -> PooledClassifier:
        """Without pretrained weights; `how` is that of `AutoModel.from_config`."""
        config = self._pooled(config)
        return PooledClassifier(config, AutoModel.from_config(config, **how))

    def from_pretrained(self, name: str, *, config: PreTrainedConfig, **how: Any) -> Any:
        """With the weights of an encoder, and a new classifier, or the trained one beside them.

        `how` is that of `AutoModel.from_pretrained`.

        Returns the model, and with `output_loading_info` what is new in it.
        """
        config = self._pooled(config)
        tells = how.pop("output_loading_info", False)
        encoder, info = AutoModel.from_pretrained(name, config=config, output_loading_info=True, **how)
        model = PooledClassifier(config, encoder)
        new = {f"{model.base_model_prefix}.{key}" for key in info["missing_keys"]}
        saved = _saved(Path(name))
        has_scores = _have_scores(saved.get("windows"))
        if saved.get("pooling") == self.pooling and has_scores == _have_scores(self._windows):
            # Its labels are looked at as those of any trained head.
            mismatched = _load_classifier(model.classifier, Path(name) / CLASSIFIER_WEIGHTS)
            info = {**info, "mismatched_keys": [*info["mismatched_keys"], *mismatched]}
        else:
            new |= {f"classifier.{key}" for key, _ in model.classifier.named_parameters()}
        model.eval()
        return (model, {**info, "missing_keys": new}) if tells else model

    def _pooled(self, config: PreTrainedConfig) -> PreTrainedConfig:
        cast(Any, config).text_pooling, cast(Any, config).text_windows = self.pooling, self._windows
        return config

    @property
    def _windows(self) -> dict[str, Any] | None:
        return None if self.windows is None else asdict(self.windows)


def saved_pooling(folder: Path) -> str | None:
    """The pooling of a trained classifier in a folder; None: there is none."""
    return _saved(folder).get("pooling")


def _have_scores(windows: Mapping[str, Any] | None) -> bool:
    return windows is not None and windows["pooling"] == "attention"


def _saved(folder: Path) -> dict[str, Any]:
    file = folder / CLASSIFIER
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _load_classifier(classifier: nn.Linear, file: Path) -> list[tuple[str, Any, Any]]:
    """Load its weights, and tell of those that do not fit: name, shape there, shape here."""
    there, here = load_file(file), classifier.state_dict()
    mismatched = [(f"classifier.{n}", t.shape, here[n].shape) for n, t in there.items() if t.shape != here[n].shape]
    if not mismatched:
        classifier.load_state_dict(there)
    return mismatched


def classifier_of(pooling: Literal["cls", "mean", "max"], windows: TextWindows | None = None) -> Any:
    """What makes a classifier of a model: for `cls` transformers' Auto class, with the head of that kind of model.

    Raises:
        UserError: if that is to score windows, too.
    """
    if pooling != "cls":
        return AutoPooledClassifier(pooling, windows)
    if windows is not None and windows.pooling == "attention":
        raise UserError(
            "`window_pooling` attention: has to go with `pooling` mean or max: the head that a model's own kind has "
            "(cls) gives windows no score"
        )
    return AutoModelForSequenceClassification
