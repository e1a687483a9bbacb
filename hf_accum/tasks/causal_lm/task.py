"""Causal language modelling: passages to examples, examples to a batch, tokens predicted from those before them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from hf_accum.accumulation.example import TOKENS, Example, Lengths
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import Row
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.models.modes import not_training
from hf_accum.models.usage import Usage
from hf_accum.tasks.causal_lm.data import Passage, passage_of
from hf_accum.tasks.language_modeling.chunked_loss import (
    TOLERANCE,
    ChunkedCrossEntropy,
    Targets,
    made_up_targets,
    output_layer,
    probe,
    with_output_layer,
)
from hf_accum.tasks.language_modeling.token_prediction import Batch, TokenPrediction, evaluate_tokens
from hf_accum.tasks.preview import Line, decoded, runs_of
from hf_accum.tasks.special_tokens import frame_of
from hf_accum.tasks.tokenization import made_up_inputs, pad, padding_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_causal(model: nn.Module, name: str) -> None:
    """Refuse a model, loaded by `name`, that reads the tokens it is to predict: it would only learn to copy them.

    An encoder loads as a causal model with all its weights. Its config says so; other models are given a text with
    two endings, which logits before the end must not tell apart. Without weights only the config is known.

    Raises:
        UserError: if its attention sees later tokens.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config: Any = model.config
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True)
    if is_encoder or _sees_later_tokens(model):
        raise UserError(
            f"`model` {name}: has to be a causal language model: its attention must not see later tokens, and that "
            f"of this one ({config.model_type}) does; recipes.medical_mlm trains encoders"
        )


def _sees_later_tokens(model: nn.Module) -> bool:
    device = next(model.parameters()).device
    if device.type == "meta":
        return False
    inputs = probe(model, 5, device)
    ids = inputs["input_ids"]
    texts = torch.cat([ids[:, :4], ids[:, [0, 1, 2, 4]]])
    with torch.no_grad(), not_training(model), with_output_layer(model):
        logits = model(input_ids=texts, attention_mask=torch.ones_like(texts)).logits.float()
    one, other = logits[:, :3]
    return float((one - other).abs().max()) > TOLERANCE * float(logits.abs().max())


@dataclass(frozen=True)
class CausalTexts(TokenPrediction):
    """Passages; the weight of an example is the number of its tokens that are predicted."""

    tokenizer: "PreTrainedTokenizerBase | None"
    """None: for a plan, which has no texts."""
    objective: ChunkedCrossEntropy
    max_length: int
    lengths: Lengths = field(default=TOKENS, init=False)
    num_parts: int = field(default=1, init=False)
    accuracy: ClassVar[str] = "next_token_accuracy"

    def usage(self) -> Usage:
        """How the model is used."""
        before = () if self.tokenizer is None else frame_of(self.tokenizer).before
        kind = "AutoModelForCausalLM"
        return Usage(task="text-generation", auto_class=kind, max_length=self.max_length, first_tokens=before)

    def prepare(self, row: Row) -> Passage:
        """The passage of a row."""
        return passage_of(row)

    def encode(self, rows: Sequence[tuple[str, Passage]]) -> list[Example]:
        """Examples of (id, passage) rows."""
        examples = []
        for example_id, passage in rows:
            places = np.flatnonzero(passage.is_target)
            features = {"input_ids": passage.tokens, "places": places}
            length, weight = len(passage.tokens), float(len(places))
            examples.append(Example(example_id, length, weight, features, passage.num_truncated))
        return examples

    def preview(self, example: Example) -> list[Line]:
        """The tokens in turn: those that are only read, and those that are learned."""
        ids = example.features["input_ids"]
        kinds = np.full(len(ids), "read", dtype=object)
        kinds[example.features["places"]] = "learned"
        return list(runs_of(self.tokenizer, ids, kinds))

    def collate(self, examples: Sequence[Example], length: int | None = None) -> Batch:
        """The model's inputs, (num_examples, length) each, and the tokens to predict, on the CPU; as `pad` does.

        A token is predicted where the one before it is read.
        """
        inputs = pad(examples, padding_of(self.tokenizer), length)
        inputs.pop("attention_mask", None)  # no token sees what stands behind it: there is the padding
        width = inputs["input_ids"].shape[1]
        positions = [row * width + example.features["places"] - 1 for row, example in enumerate(examples)]
        tokens = [example.features["input_ids"][example.features["places"]] for example in examples]
        return inputs, Targets(
            torch.from_numpy(np.concatenate(positions)), torch.from_numpy(np.concatenate(tokens).astype(np.int64))
        )

    def dummy_batch(self, model: nn.Module, num_examples: int, length: int, device: torch.device) -> Batch:
        """Texts of nothing, of which all tokens are predicted."""
        targets = made_up_targets(1.0, num_examples, length, self.objective.num_at_once(output_layer(model)), device)
        inputs = made_up_inputs(model, num_examples, length, device)
        inputs.pop("attention_mask", None)
        return inputs, targets

    def evaluate(
        self,
        model: nn.Module,
        held_out: WindowStream[Any],
        *,
        ranks: Ranks,
        cutter: Cutter,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """See `evaluate_tokens`. A collective."""
        return evaluate_tokens(self, model, held_out, ranks, cutter, folder)

    def show(self, example: Example) -> dict[str, Any]:
        """The text of an example, as the model sees it."""
        return {"text": decoded(self.tokenizer, example.features["input_ids"])}
