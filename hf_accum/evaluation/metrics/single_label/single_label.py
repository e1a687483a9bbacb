"""Accuracy, macro and micro F1, AUROC, average precision, and a table by class, for one label per example."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from hf_accum.evaluation.by_class import mean_of_classes, ranked

_DESCRIPTION = (
    "Accuracy, macro and micro F1, and precision, recall, F1, support and predictions of each class; with scores "
    "also AUROC and average precision of each class against all others, and their means."
)


class SingleLabel(evaluate.Metric):
    """Class indices against class indices; `label_names` name the classes, also those that do not occur.

    Classes that occur neither in the references nor in the predictions are null, and left out of macro F1. With
    `scores`, (num_examples, num_classes), each class is ranked against all others: null, and left out of the means,
    where the references hold it always or never, or a score is not a number.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: class indices",
            features=datasets.Features(
                {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
            ),
        )

    def _compute(self, predictions, references, label_names, scores=None):
        predicted, truth = np.asarray(predictions), np.asarray(references)
        classes = list(range(len(label_names)))
        table = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0)
        micro = precision_recall_fscore_support(truth, predicted, labels=classes, average="micro", zero_division=0)
        per_class = {}
        for index, (name, row) in enumerate(zip(label_names, zip(*table, strict=True), strict=True)):
            num_predicted, occurs = int((predicted == index).sum()), bool(row[3]) or (predicted == index).any()
            values = [float(value) if occurs else None for value in row[:3]]
            per_class[name] = dict(zip(("precision", "recall", "f1"), values, strict=True))
            per_class[name] |= {"support": float(row[3]), "predicted": float(num_predicted)}
            if scores is not None:
                per_class[name] |= ranked(truth == index, np.asarray(scores)[:, index])
        figures = {
            "accuracy": float(accuracy_score(truth, predicted)),
            "macro_f1": mean_of_classes(per_class, "f1"),
            "micro_f1": float(micro[2]),
        }
        if scores is not None:
            figures |= {f"macro_{name}": mean_of_classes(per_class, name) for name in ("auroc", "average_precision")}
        return {**figures, "per_class": per_class}
