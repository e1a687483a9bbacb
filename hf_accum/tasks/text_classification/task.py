"""Classification of texts: rows to examples, examples to a batch, logits to what the metrics need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.losses import BinaryCrossEntropy, CrossEntropy, Objective, SquaredError
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.evaluation.evaluate import Metric, check_metrics, evaluate_model
from hf_accum.tasks.labels import LabelColumn, named_labels
from hf_accum.tasks.tokenization import made_up_inputs, pad, text_of, tokenize
from hf_accum.tuner.workload import Workload

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
    extra_metrics: tuple[str, ...] = ()
    """Of the hub, by name."""

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

    def collate(self, examples: Sequence[Example], length: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs, (num_examples, length) each, and the labels, on the CPU; as `pad` does."""
        pad_token_id = self.tokenizer.pad_token_id
        assert isinstance(pad_token_id, int)
        labels = self._tensor([example.features["label"] for example in examples])
        return pad(examples, pad_token_id, length), labels

    def compact(self, logits: Tensor) -> Tensor:
        """Predicted class indices, probabilities of labels, or numbers."""
        return _compact(logits, self.labels)

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
        how = (self.collate, self.objective, self.compact, self.metrics)
        return evaluate_model(model, held_out, *how, ranks=ranks, cutter=cutter)

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


def classification_workload(
    model: nn.Module,
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    labels: LabelColumn,
    objective: Objective,
    max_length: int,
    precision: str = "no",
) -> Workload:
    """What training and evaluating a text classifier compute, for the tracer and the tuner: no data is needed."""

    def batch(num_examples: int, length: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        shape = (
            (num_examples, len(labels.names)) if labels.problem == "multi_label_classification" else (num_examples,)
        )
        dtype = torch.long if labels.problem == "single_label_classification" else torch.float32
        inputs = made_up_inputs(model, num_examples, length, device)
        return inputs, torch.zeros(shape, dtype=dtype, device=device)

    def loss(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        inputs, targets = batch(num_examples, length, device)
        return objective(model(**inputs).logits, targets)

    def predict(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        inputs, _ = batch(num_examples, length, device)
        return _compact(model(**inputs).logits, labels)

    return Workload(model, optimizer, loss, predict, max_length, precision=precision)


def _compact(logits: Tensor, labels: LabelColumn) -> Tensor:
    match labels.problem:
        case "single_label_classification":
            return logits.argmax(-1).int()
        case "multi_label_classification":
            return logits.float().sigmoid()
        case "regression":
            return logits.float().squeeze(-1)


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
