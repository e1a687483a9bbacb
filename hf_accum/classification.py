"""Classification of texts: rows to examples, examples to a batch, logits to what the metrics need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_accum.evaluation import Metric
from hf_accum.labels import LabelColumn
from hf_accum.losses import BinaryCrossEntropy, CrossEntropy, Objective, SquaredError
from hf_accum.text import pad, text_of, tokenize
from hf_accum.window import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prepared = tuple[str, int | float | list[float]]
"""What is kept of a row: its text, and its label as `LabelColumn.encode` gives it."""


@dataclass(frozen=True)
class TextClassification:
    """One class for each text, any number of labels, or a number, as `labels.problem` says."""

    text_column: str
    labels: LabelColumn
    objective: Objective
    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    device: torch.device

    def prepare(self, row: Mapping[str, Any]) -> Prepared:
        """A row's text and label.

        Raises:
            BadRow: if either is missing or cannot be used.
        """
        return text_of(row, self.text_column), self.labels.encode(row)

    def encode(self, rows: Sequence[tuple[str, Prepared]]) -> list[Example]:
        """Tokenise (id, (text, label)) rows."""
        tokens = tokenize(self.tokenizer, [text for _, (text, _) in rows], self.max_length)
        return [
            Example(
                id=example_id,
                length=len(ids),
                weight=self.objective.weight(self._tensor([label])),
                features={"input_ids": ids, "label": label},
                num_truncated_tokens=num_truncated,
            )
            for (example_id, (_, label)), (ids, num_truncated) in zip(rows, tokens, strict=True)
        ]

    def batch(self, examples: Sequence[Example]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs, (num_examples, longest) each, and the labels, on the device."""
        labels = self._tensor([example.features["label"] for example in examples])
        pad_token_id = self.tokenizer.pad_token_id
        assert isinstance(pad_token_id, int)
        return pad(examples, pad_token_id, self.device), labels.to(self.device, non_blocking=True)

    def compact(self, logits: Tensor) -> Tensor:
        """Predicted class indices, probabilities of labels, or numbers."""
        match self.labels.problem:
            case "single_label_classification":
                return logits.argmax(-1).int()
            case "multi_label_classification":
                return logits.float().sigmoid()
            case "regression":
                return logits.float().squeeze(-1)

    def metric(self) -> Metric:
        """The shipped metric of this problem."""
        match self.labels.problem:
            case "single_label_classification":
                return Metric("single_label", {"label_names": self.labels.names})
            case "multi_label_classification":
                return Metric("multi_label", {"label_names": self.labels.names})
            case "regression":
                return Metric("regression", {})

    def model_config(self) -> dict[str, Any]:
        """What the model's config has to say about labels."""
        names = self.labels.names
        if not names:
            return {"problem_type": self.labels.problem, "num_labels": 1}
        return {
            "problem_type": self.labels.problem,
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }

    def _tensor(self, labels: list[Any]) -> Tensor:
        is_index = self.labels.problem == "single_label_classification"
        return torch.tensor(labels, dtype=torch.long if is_index else torch.float32)


def build_objective(
    labels: LabelColumn,
    *,
    class_weights: str | Sequence[float] = "none",
    positive_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
    label_counts: Mapping[str, int] | None = None,
) -> Objective:
    """The loss of a problem.

    `class_weights` are numbers in the order of the labels, or balanced: n / (num_classes * n of the class), as
    scikit-learn weighs classes, or sqrt_balanced: the square root of that. Both need `label_counts`.

    Raises:
        ValueError: if a class that has to be balanced does not occur.
    """
    match labels.problem:
        case "regression":
            return SquaredError()
        case "multi_label_classification":
            weights = torch.tensor(positive_weights, dtype=torch.float64) if positive_weights else None
            return BinaryCrossEntropy(weights)
        case "single_label_classification":
            if class_weights == "none":
                return CrossEntropy(None, label_smoothing)
            if not isinstance(class_weights, str):
                return CrossEntropy(torch.tensor(class_weights, dtype=torch.float64), label_smoothing)
            counts = torch.tensor([(label_counts or {}).get(n, 0) for n in labels.names], dtype=torch.float64)
            if not bool(counts.all()):
                absent = [name for name, count in zip(labels.names, counts, strict=True) if not count]
                raise ValueError(
                    f"--class_weights {class_weights}: no row to train on has the label {', '.join(absent)}; "
                    "give the weights as numbers, or leave the label out"
                )
            balanced = counts.sum() / (len(counts) * counts)
            return CrossEntropy(balanced.sqrt() if class_weights == "sqrt_balanced" else balanced, label_smoothing)
