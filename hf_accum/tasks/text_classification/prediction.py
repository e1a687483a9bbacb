"""Classes of texts, or their numbers, for rows without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.evaluation.records import shortest
from hf_accum.tasks.prediction import Told
from hf_accum.tasks.task import PoolsParts
from hf_accum.tasks.text_classification.pairs import Texts, texts_of
from hf_accum.tasks.text_classification.task import TextClassification
from hf_accum.tasks.text_template import TextTemplate


@dataclass(frozen=True)
class TextPredictor:
    """The `prediction` of a text by the run's thresholds and temperature, with the `probabilities` of all labels; of
    a regression the number.
    """

    task: TextClassification
    template: TextTemplate | None = None
    """By which a row's text is written."""
    most_rows: int = 4_096
    writes: bool = False
    image_column: None = None

    @property
    def adds(self) -> tuple[str, ...]:
        """The columns that `told` adds."""
        return ("prediction",) if self.task.labels.problem == "regression" else ("prediction", "probabilities")

    def prepare(self, row: Mapping[str, Any]) -> Texts:
        """A row's text, or pair of texts.

        Raises:
            BadRow: if one is missing or cannot be used.
        """
        if self.template is not None:
            row = {**row, self.task.text_column: self.template.fill(row)}
        return texts_of(row, self.task.text_column, self.task.pair_column)

    def encode(self, rows: Sequence[tuple[str, Texts]]) -> list[Example]:
        """Tokenise (id, text) rows, with a label that nobody looks at."""
        several = self.task.labels.problem == "multi_label_classification"
        label: Any = [0.0] * len(self.task.labels.names) if several else 0
        return self.task.encode([(row_id, (texts, label)) for row_id, texts in rows])

    def forward(self, model: nn.Module, examples: Sequence[Example], length: int) -> list[Tensor]:
        """The outputs of texts, or of windows of them."""
        batch = to_device(self.task.collate(examples, length), next(model.parameters()).device)
        return list(self.task.predict(model, batch).predictions.cpu())

    def told(self, example: Example, outputs: Sequence[Tensor]) -> Told:
        """The label, or labels, by name."""
        logits = torch.stack(list(outputs))
        if isinstance(self.task, PoolsParts):
            ids = [part.id for part in inputs_of([example])]
            logits = self.task.whole([example], dict(zip(ids, outputs, strict=True))).predictions
        if self.task.labels.problem == "regression":
            return Told({"prediction": shortest(logits[0])})
        return Told(self.task.decisions.told(logits.numpy())(0))
