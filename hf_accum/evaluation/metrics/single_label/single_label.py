"""Accuracy, macro and micro F1, and a table by class, for one label per example."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

_DESCRIPTION = "Accuracy, macro and micro F1, and precision, recall, F1 and support of each class."


class SingleLabel(evaluate.Metric):
    """Class indices against class indices; `label_names` name the classes, also those that do not occur."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: class indices",
            features=datasets.Features(
                {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
            ),
        )

    def _compute(self, predictions, references, label_names):
        classes = list(range(len(label_names)))
        table = precision_recall_fscore_support(references, predictions, labels=classes, zero_division=0)
        micro = precision_recall_fscore_support(
            references, predictions, labels=classes, average="micro", zero_division=0
        )
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "macro_f1": float(table[2].mean()),
            "micro_f1": float(micro[2]),
            "per_class": {
                name: dict(zip(("precision", "recall", "f1", "support"), map(float, row), strict=True))
                for name, row in zip(label_names, zip(*table, strict=True), strict=True)
            },
        }
