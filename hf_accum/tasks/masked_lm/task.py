"""Masked language modelling: which tokens are hidden, drawn anew in each pass, and how well they are guessed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import Row
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.seeding import derive_seed
from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy, Targets
from hf_accum.tasks.language_modeling.perplexity import evaluate_tokens
from hf_accum.tasks.masked_lm.data import tokens_of
from hf_accum.tasks.special_tokens import Frame
from hf_accum.tasks.tokenization import pad, padding_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ACCURACY = "masked_accuracy"


@dataclass(frozen=True)
class MaskedTexts:
    """A share of the tokens is hidden: of these 80 % are the mask, 10 % any token, 10 % as they were, as in BERT
    (Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2019, section 3.1).

    At least one of each text is. Which ones comes from the seed, the pass and the example; of held-out texts they are
    the same in each evaluation.
    """

    tokenizer: "PreTrainedTokenizerBase"
    objective: ChunkedCrossEntropy
    seed: int
    share: float = 0.15

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

    def collate(self, examples: Sequence[Example], length: int | None = None) -> tuple[dict[str, Tensor], Targets]:
        """The model's inputs, (num_examples, length) each, and what is hidden in them, on the CPU; as `pad` does."""
        inputs = pad(examples, padding_of(self.tokenizer), length)
        width = inputs["input_ids"].shape[1]
        places = [row * width + example.features["places"] for row, example in enumerate(examples)]
        tokens = np.concatenate([example.features["tokens"] for example in examples])
        return inputs, Targets(torch.from_numpy(np.concatenate(places)), torch.from_numpy(tokens))

    def evaluate(
        self, model: nn.Module, held_out: WindowStream[Any], *, ranks: Ranks, cutter: Cutter
    ) -> dict[str, Any]:
        """The mean loss of hidden tokens, its exponential, and the share that is guessed right. A collective."""
        return evaluate_tokens(
            model, held_out, self.collate, self.objective, accuracy=ACCURACY, ranks=ranks, cutter=cutter
        )

    @cached_property
    def _frame(self) -> Frame:
        return Frame.of(self.tokenizer)
