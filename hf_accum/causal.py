"""Causal language modelling: passages to examples, examples to a batch, tokens predicted from those before them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.cutting import Cutter
from hf_accum.language import ChunkedCrossEntropy, Targets
from hf_accum.passages import Passage, passage_of
from hf_accum.perplexity import evaluate_tokens
from hf_accum.ranks import Ranks
from hf_accum.source import Row
from hf_accum.stream import WindowStream
from hf_accum.text import pad
from hf_accum.window import Example

ACCURACY = "next_token_accuracy"


@dataclass(frozen=True)
class CausalTexts:
    """Passages; the weight of an example is the number of its tokens that are predicted."""

    objective: ChunkedCrossEntropy
    pad_token_id: int

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

    def collate(self, examples: Sequence[Example], length: int | None = None) -> tuple[dict[str, Tensor], Targets]:
        """The model's inputs, (num_examples, length) each, and the tokens to predict, on the CPU; as `pad` does.

        A token is predicted where the one before it is read.
        """
        inputs = pad(examples, self.pad_token_id, length)
        width = inputs["input_ids"].shape[1]
        positions = [row * width + example.features["places"] - 1 for row, example in enumerate(examples)]
        tokens = [example.features["input_ids"][example.features["places"]] for example in examples]
        return inputs, Targets(
            torch.from_numpy(np.concatenate(positions)), torch.from_numpy(np.concatenate(tokens).astype(np.int64))
        )

    def evaluate(
        self, model: nn.Module, held_out: WindowStream[Any], *, ranks: Ranks, cutter: Cutter
    ) -> dict[str, Any]:
        """The mean loss of predicted tokens, its exponential, and the share that is guessed right. A collective."""
        return evaluate_tokens(
            model, held_out, self.collate, self.objective, accuracy=ACCURACY, ranks=ranks, cutter=cutter
        )
