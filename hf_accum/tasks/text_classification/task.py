"""Classification of texts: rows to examples, examples to a batch, logits to what the metrics need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import TOKENS, Example, Lengths
from hf_accum.accumulation.losses import BinaryCrossEntropy, CrossEntropy, Objective, SquaredError
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.evaluation.classification import check_classification
from hf_accum.evaluation.decisions import Decisions, Fitted
from hf_accum.evaluation.evaluate import Metric, check_metrics
from hf_accum.evaluation.judge import Predicted
from hf_accum.models.usage import Usage
from hf_accum.tasks.judging import fit_decisions, judge_classes, judge_numbers
from hf_accum.tasks.labels import LabelColumn, named_labels
from hf_accum.tasks.preview import Line, decoded, runs_of
from hf_accum.tasks.text_classification.pairs import Texts, texts_of, with_token_types
from hf_accum.tasks.text_classification.positive_weights import balanced_positive_weights
from hf_accum.tasks.tokenization import made_up_inputs, pad, padding_of, tokenize, tokenize_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prepared = tuple[Texts, int | float | list[float]]
"""What is kept of a row: its text or pair of texts, and its label as `LabelColumn.encode` gives it."""
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
    tune_thresholds: bool = False
    """Whether `calibrate` chooses the threshold of each label, and ..."""
    temperature_scaling: bool = False
    """... whether it fits a temperature."""
    fitted: Fitted | None = None
    """What it found."""
    pair_column: str | None = None
    """Column with a second text, which is read together with the first."""
    lengths: Lengths = field(default=TOKENS, init=False)
    num_parts: int = field(default=1, init=False)

    def usage(self) -> Usage:
        """How the model is used."""
        pair = {} if self.pair_column is None else {"text_pair": self.pair_column}
        return Usage(
            task="text-classification",
            auto_class="AutoModelForSequenceClassification",
            columns={"text": self.text_column, **pair, "label": self.labels.column},
            problem=self.labels.problem,
            label_codes=dict(zip(self.labels.codes, self.labels.names, strict=False)),
            max_length=self.max_length,
            is_pair=self.pair_column is not None,
            is_calibrated=self.tune_thresholds or self.temperature_scaling,
        )

    def prepare(self, row: Mapping[str, Any]) -> Prepared:
        """A row's text (or pair of texts) and label.

        Raises:
            BadRow: if either is missing or cannot be used.
        """
        return texts_of(row, self.text_column, self.pair_column), self.labels.encode(row)

    def encode(self, rows: Sequence[tuple[str, Prepared]]) -> list[Example]:
        """Tokenise (id, (text or pair, label)) rows."""
        tokens = self._tokenize([text for _, (text, _) in rows])
        return [
            Example(
                id=example_id,
                length=len(inputs["input_ids"]),
                weight=self.objective.weight(self._tensor([label])),
                features={**inputs, "label": label},
                num_truncated_tokens=num_truncated,
            )
            for (example_id, (_, label)), (inputs, num_truncated) in zip(rows, tokens, strict=True)
        ]

    def preview(self, example: Example) -> list[Line]:
        """The tokens as the model sees them, and the label by name."""
        ids, types = example.features["input_ids"], example.features.get("token_type_ids")
        if types is None:
            lines = [("text" if self.pair_column is None else "texts", decoded(self.tokenizer, ids))]
        else:
            lines = runs_of(self.tokenizer, ids, np.char.add("type ", types.astype(str)))
        return [*lines, ("label", self._label_by_name(example.features["label"]))]

    def _label_by_name(self, label: Any) -> str:
        match self.labels.problem:
            case "single_label_classification":
                return self.labels.names[label]
            case "multi_label_classification":
                present = [name for name, is_there in zip(self.labels.names, label, strict=True) if is_there]
                return ", ".join(present) or "(none)"
            case "regression":
                return f"{label:g}"

    def _tokenize(self, texts: Sequence[Any]) -> list[tuple[dict[str, np.ndarray], int]]:
        assert self.tokenizer is not None
        if self.pair_column is not None:
            return tokenize_pairs(self.tokenizer, texts, self.max_length)
        return [({"input_ids": ids}, cut) for ids, cut in tokenize(self.tokenizer, texts, self.max_length)]

    def collate(self, examples: Sequence[Example], length: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs, (num_examples, length) each, and the labels, on the CPU; as `pad` does."""
        labels = self._tensor([example.features["label"] for example in examples])
        return pad(examples, padding_of(self.tokenizer), length), labels

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the labels, summed, in float32."""
        inputs, labels = batch
        return self.objective(model(**inputs).logits, labels)

    def predict(self, model: nn.Module, batch: Batch) -> Predicted:
        """The summed loss, and the logits: of a regression the numbers."""
        inputs, labels = batch
        return self.judged(model(**inputs).logits, labels)

    def judged(self, logits: Tensor, labels: Tensor) -> Predicted:
        """The same of logits, (num_texts, num_labels)."""
        outputs = logits.float()
        is_number = self.labels.problem == "regression"
        return Predicted(self.objective(logits, labels), outputs.squeeze(-1) if is_number else outputs, labels)

    def dummy_batch(self, model: nn.Module, num_examples: int, length: int, device: torch.device) -> Batch:
        """Texts of nothing, with a label each."""
        is_index = self.labels.problem == "single_label_classification"
        several = (len(self.labels.names),) if self.labels.problem == "multi_label_classification" else ()
        dtype = torch.long if is_index else torch.float32
        labels = torch.zeros((num_examples, *several), dtype=dtype, device=device)
        inputs = made_up_inputs(model, num_examples, length, device)
        if self.pair_column is not None:
            inputs = with_token_types(inputs, self.tokenizer, model)
        return inputs, labels

    @property
    def decisions(self) -> Decisions:
        """How logits are read; not those of a regression."""
        return Decisions(self.labels.names, self.labels.problem == "multi_label_classification", self.fitted)

    def check_metrics(self, best_metric: str | None) -> None:
        """Compute the figures once, before the training that needs them.

        Raises:
            UserError: if a metric is not to be had or cannot take such predictions, or there is no `best_metric`.
        """
        if self.labels.problem == "regression":
            check_metrics(self._metrics, best_metric, torch.tensor([0.0, 1.0]))
        else:
            check_classification(self.decisions, self._metrics, best_metric)

    def calibrate(self, model: nn.Module, part: WindowStream[Prepared], *, ranks: Ranks, cutter: Cutter) -> Self:
        """This, with thresholds and temperature fitted, as they are asked for, on a part that is not trained on."""
        how = {"temperature": self.temperature_scaling, "thresholds": self.tune_thresholds}
        return replace(self, fitted=fit_decisions(self, model, part, ranks=ranks, cutter=cutter, **how))

    def evaluate(
        self,
        model: nn.Module,
        held_out: WindowStream[Prepared],
        *,
        ranks: Ranks,
        cutter: Cutter,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """The loss and the figures over all examples of a stream; at the end also intervals, and each in a file."""
        how = {"ranks": ranks, "cutter": cutter, "folder": folder}
        if self.labels.problem == "regression":
            return judge_numbers(self, model, held_out, self._metrics, **how)
        return judge_classes(self, model, held_out, self._metrics, **how)

    def show(self, example: Example) -> dict[str, Any]:
        """The text of an example, or both of a pair."""
        assert example.origin is not None
        text, _ = example.origin.row
        return {"text": text} if isinstance(text, str) else dict(zip(("text", "text_pair"), text, strict=True))

    @property
    def _metrics(self) -> list[Metric]:
        """Beside the figures of a classification: the extra ones, and that of a regression."""
        shipped = [Metric("regression", {})] if self.labels.problem == "regression" else []
        return [*shipped, *(Metric(name, {}) for name in self.extra_metrics)]

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
    positive_weights: str | Sequence[float] = (),
    label_smoothing: float = 0.0,
    label_counts: Mapping[str, int] | None = None,
    num_examples: int | None = None,
) -> Objective:
    """The loss of a problem.

    `class_weights` are numbers in the order of the labels, or balanced: n / (num_classes * n of the class), as
    scikit-learn weighs classes, or sqrt_balanced: the square root of that. `positive_weights` are numbers, or
    balanced: see `balanced_positive_weights`. These need `label_counts` of the rows to train
    on, and their number, `num_examples`.

    Raises:
        UserError: if a class that has to be balanced does not occur, or a label always does.
    """
    match labels.problem:
        case "regression":
            return SquaredError()
        case "multi_label_classification":
            if positive_weights == "balanced":
                positive_weights = balanced_positive_weights(labels.names, label_counts or {}, num_examples or 0)
            return BinaryCrossEntropy(
                torch.tensor(positive_weights, dtype=torch.float64) if positive_weights else None
            )
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
