"""Classification of texts: rows to examples, examples to a batch, logits to what the metrics need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import TOKENS, Example, Lengths
from hf_accum.accumulation.losses import BinaryCrossEntropy, CrossEntropy, Objective, SquaredError
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.evaluation.evaluate import Metric, Predicted, check_metrics, evaluate_model
from hf_accum.tasks.labels import LabelColumn, named_labels
from hf_accum.tasks.tokenization import made_up_inputs, pad, padding_of, text_of, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prepared = tuple[str, int | float | list[float]]
"""What is kept of a row: its text, and its label as `LabelColumn.encode` gives it."""
Batch = tuple[Mapping[str, Tensor], Tensor]
"""The model's inputs, and the labels."""


@dataclass(frozen=True)
class TextClassification:
    """One class for each text, any number of labels, or a number, as `labels.problem` says."""

    text_column: str
    labels: LabelColumn
    objective: Objective
    tokenizer: "PreTrainedTokenizerBase | None"
    """None: for a plan, which has no texts."""
    max_length: int
    extra_metrics: tuple[str, ...] = ()
    """Of the hub, by name."""
    lengths: Lengths = field(default=TOKENS, init=False)
    num_parts: int = field(default=1, init=False)

    def prepare(self, row: Mapping[str, Any]) -> Prepared:
        """A row's text and label.

        Raises:
            BadRow: if either is missing or cannot be used.
        """
        return text_of(row, self.text_column), self.labels.encode(row)

    def encode(self, rows: Sequence[tuple[str, Prepared]]) -> list[Example]:
        """Tokenise (id, (text, label)) rows."""
        assert self.tokenizer is not None
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

    def collate(self, examples: Sequence[Example], length: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs, (num_examples, length) each, and the labels, on the CPU; as `pad` does."""
        labels = self._tensor([example.features["label"] for example in examples])
        return pad(examples, padding_of(self.tokenizer), length), labels

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the labels, summed, in float32."""
        inputs, labels = batch
        return self.objective(model(**inputs).logits, labels)

    def predict(self, model: nn.Module, batch: Batch) -> Predicted:
        """The summed loss, and what the metrics need: see `compact`."""
        inputs, labels = batch
        logits = model(**inputs).logits
        return Predicted(self.objective(logits, labels), self.compact(logits), labels)

    def dummy_batch(self, model: nn.Module, num_examples: int, length: int, device: torch.device) -> Batch:
        """Texts of nothing, with a label each."""
        is_index = self.labels.problem == "single_label_classification"
        several = (len(self.labels.names),) if self.labels.problem == "multi_label_classification" else ()
        dtype = torch.long if is_index else torch.float32
        labels = torch.zeros((num_examples, *several), dtype=dtype, device=device)
        return made_up_inputs(model, num_examples, length, device), labels

    def compact(self, logits: Tensor) -> Tensor:
        """Predicted class indices, probabilities of labels, or numbers."""
        match self.labels.problem:
            case "single_label_classification":
                return logits.argmax(-1).int()
            case "multi_label_classification":
                return logits.float().sigmoid()
            case "regression":
                return logits.float().squeeze(-1)

    @property
    def metrics(self) -> list[Metric]:
        """The shipped metric of this problem, and the extra ones."""
        return [self._metric, *(Metric(name, {}) for name in self.extra_metrics)]

    def check_metrics(self, best_metric: str | None) -> None:
        """Compute the metrics once, before the training that needs them.

        Raises:
            UserError: as the function of the same name does.
        """
        num_logits = len(self.labels.names) or 1
        each_class_once = torch.eye(max(2, num_logits))[:, :num_logits]
        check_metrics(self.metrics, best_metric, self.compact(each_class_once))

    def evaluate(
        self, model: nn.Module, held_out: WindowStream[Prepared], *, ranks: Ranks, cutter: Cutter
    ) -> dict[str, Any]:
        """The loss and the metrics over all examples of a stream."""
        return evaluate_model(model, held_out, self.collate, self.predict, self.metrics, ranks=ranks, cutter=cutter)

    @property
    def _metric(self) -> Metric:
        match self.labels.problem:
            case "single_label_classification":
                return Metric("single_label", {"label_names": self.labels.names})
            case "multi_label_classification":
                return Metric("multi_label", {"label_names": self.labels.names})
            case "regression":
                return Metric("regression", {})

    def _tensor(self, labels: list[Any]) -> Tensor:
        is_index = self.labels.problem == "single_label_classification"
        return torch.tensor(labels, dtype=torch.long if is_index else torch.float32)


def model_config(labels: LabelColumn) -> dict[str, Any]:
    """What a model's config has to say about labels."""
    names = labels.names
    if not names:
        return {"problem_type": labels.problem, "num_labels": 1}
    return {"problem_type": labels.problem, **named_labels(names)}


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
        UserError: if a class that has to be balanced does not occur.
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
                raise UserError(
                    f"`class_weights` {class_weights}: no row to train on has the label {', '.join(absent)}; "
                    "give the weights as numbers, or leave the label out"
                )
            balanced = counts.sum() / (len(counts) * counts)
            return CrossEntropy(balanced.sqrt() if class_weights == "sqrt_balanced" else balanced, label_smoothing)
