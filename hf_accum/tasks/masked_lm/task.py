"""Masked language modelling: which tokens are hidden, drawn anew in each pass, and how well they are guessed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from hf_accum.accumulation.example import TOKENS, Example, Lengths
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.trust import Trust
from hf_accum.data.source import Row
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.models.usage import Usage
from hf_accum.seeding import derive_seed
from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy, Targets, made_up_targets, output_layer
from hf_accum.tasks.language_modeling.token_prediction import Batch, TokenPrediction, evaluate_tokens
from hf_accum.tasks.masked_lm.data import tokens_of
from hf_accum.tasks.preview import Line, decoded, hidden_tokens
from hf_accum.tasks.special_tokens import Frame
from hf_accum.tasks.tokenization import made_up_inputs, pad, padding_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_masking_tokenizer(name: str, trust: Trust) -> "PreTrainedTokenizerBase":
    """A model's tokenizer, which has a token for what is hidden.

    Raises:
        UserError: if it has none, and as `load_tokenizer` does.
    """
    tokenizer = load_tokenizer(name, trust)
    if tokenizer.mask_token_id is None:
        raise UserError(f"`model` {name}: has to have a token for what is hidden; its tokenizer has none")
    return tokenizer


@dataclass(frozen=True)
class MaskedTexts(TokenPrediction):
    """A share of the tokens is hidden: of these 80 % are the mask, 10 % any token, 10 % as they were, as in BERT
    (Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2019, section 3.1).

    At least one of each text is. Which ones comes from the seed, the pass and the example; of held-out texts they are
    the same in each evaluation.
    """

    tokenizer: "PreTrainedTokenizerBase | None"
    """None: for a plan, which has no texts."""
    objective: ChunkedCrossEntropy
    max_length: int
    seed: int
    share: float = 0.15
    lengths: Lengths = field(default=TOKENS, init=False)
    num_parts: int = field(default=1, init=False)
    accuracy: ClassVar[str] = "masked_accuracy"

    def usage(self) -> Usage:
        """How the model is used."""
        return Usage(task="fill-mask", auto_class="AutoModelForMaskedLM", max_length=self.max_length)

    def prepare(self, row: Row) -> np.ndarray:
        """The tokens of a part of a text."""
        return tokens_of(row)

    def encode(self, rows: Sequence[tuple[str, np.ndarray]]) -> list[Example]:
        """Put the special tokens around (id, tokens) rows."""
        frame = self._frame
        return [
            Example(example_id, len(tokens) + frame.size, 1.0, {"input_ids": frame.around(tokens)})
            for example_id, tokens in rows
        ]

    def draw(self, example: Example, epoch: int | None) -> Example:
        """Hide tokens of an example, in a pass; None: of a held-out one. Its weight is their number."""
        assert self.tokenizer is not None
        seed = derive_seed(self.seed, "mask", "held out" if epoch is None else epoch, example.id)
        random = np.random.Generator(np.random.PCG64(seed))
        ids: np.ndarray = example.features["input_ids"].copy()
        frame = self._frame
        first, last = len(frame.before), len(ids) - len(frame.after)
        hidden = random.random(last - first) < self.share
        hidden[random.integers(last - first)] |= not hidden.any()
        places = first + np.flatnonzero(hidden)
        tokens = ids[places].astype(np.int64)
        how = random.random(len(places))
        ids[places[how < 0.8]] = self.tokenizer.mask_token_id
        others = places[how >= 0.9]
        ids[others] = random.integers(len(self.tokenizer), size=len(others))
        return replace(
            example, weight=float(len(places)), features={"input_ids": ids, "places": places, "tokens": tokens}
        )

    def preview(self, example: Example) -> list[Line]:
        """The tokens as the model sees them, and those that it has to guess."""
        ids, places, right = (example.features[name] for name in ("input_ids", "places", "tokens"))
        return [("text", decoded(self.tokenizer, ids)), hidden_tokens(self.tokenizer, ids[places], right)]

    def collate(self, examples: Sequence[Example], length: int | None = None) -> Batch:
        """The model's inputs, (num_examples, length) each, and what is hidden in them, on the CPU; as `pad` does."""
        inputs = pad(examples, padding_of(self.tokenizer), length)
        width = inputs["input_ids"].shape[1]
        places = [row * width + example.features["places"] for row, example in enumerate(examples)]
        tokens = np.concatenate([example.features["tokens"] for example in examples])
        return inputs, Targets(torch.from_numpy(np.concatenate(places)), torch.from_numpy(tokens))

    def dummy_batch(self, model: nn.Module, num_examples: int, length: int, device: torch.device) -> Batch:
        """Texts of nothing, of which twice the share of the tokens is hidden: more never are but in short texts."""
        share = min(1.0, 2 * self.share)
        targets = made_up_targets(
            share, num_examples, length, self.objective.num_at_once(output_layer(model)), device
        )
        return made_up_inputs(model, num_examples, length, device), targets

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

    @cached_property
    def _frame(self) -> Frame:
        assert self.tokenizer is not None
        return Frame.of(self.tokenizer)
