"""What a language model answers, or how it goes on, for rows with a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from hf_accum.accumulation.example import Example
from hf_accum.data.formats.rows import BadRow
from hf_accum.tasks.causal_lm.data import Reader
from hf_accum.tasks.causal_lm.generation import Continuation, go_on
from hf_accum.tasks.causal_lm.task import CausalTexts
from hf_accum.tasks.prediction import Told


@dataclass(frozen=True)
class TextGenerator:
    """The text that the model writes behind a row's prompt as `prediction`, by the most likely token at each place,
    and whether it came to its end (`is_ended`) or stopped at `max_new_tokens`.
    """

    task: CausalTexts
    reader: Reader
    max_new_tokens: int
    most_rows: int = 4_096
    writes: bool = True
    image_column: None = None
    adds: tuple[str, ...] = ("prediction", "is_ended")

    def prepare(self, row: Mapping[str, Any]) -> np.ndarray:
        """The tokens of a row's prompt.

        Raises:
            BadRow: if there is none, or it leaves no place for `max_new_tokens`.
        """
        prompt = self.reader.prompt(row)
        most = self.task.max_length - self.max_new_tokens
        if len(prompt) > most:
            raise BadRow(
                "",
                f"its prompt has {len(prompt):,} tokens, and there is room for {max(most, 0):,}: of "
                f"{self.task.max_length:,} in all (`max_length`), {self.max_new_tokens:,} are for what is written "
                "(`max_new_tokens`)",
                "give a larger `max_length`, where the model has places for it, or a smaller `max_new_tokens`",
            )
        return prompt

    def encode(self, rows: Sequence[tuple[str, np.ndarray]]) -> list[Example]:
        """Prompts with the places of what is written behind them."""
        return [
            Example(row_id, len(prompt) + self.max_new_tokens, 1.0, {"input_ids": prompt}) for row_id, prompt in rows
        ]

    def forward(self, model: nn.Module, examples: Sequence[Example], length: int) -> list[Continuation]:
        """What is written behind prompts."""
        assert self.task.tokenizer is not None
        prompts = [example.features["input_ids"] for example in examples]
        return go_on(model, self.task.tokenizer, prompts, self.max_new_tokens)

    def told(self, example: Example, outputs: Sequence[Continuation]) -> Told:
        """The text, and whether it came to its end."""
        (found,) = outputs
        ended = f"the text ended at {self.max_new_tokens:,} tokens, the most that are written (`max_new_tokens`)"
        remarks = () if found.is_ended else (ended,)
        return Told({"prediction": found.text, "is_ended": found.is_ended}, remarks=remarks)
