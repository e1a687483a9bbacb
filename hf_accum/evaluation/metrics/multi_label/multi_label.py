"""Exact-match accuracy, F1, AUROC, average precision and a table by label, for any number of labels per example."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from hf_accum.evaluation.by_class import mean_of_classes, ranked

_DESCRIPTION = (
    "Exact-match accuracy, macro and micro F1 at thresholds (0.5 where none are given), macro and micro AUROC and "
    "average precision, and all of them by label."
)


class MultiLabel(evaluate.Metric):
    """Probabilities against zeros and ones, (num_examples, num_labels).

    Labels that occur neither in the references nor in the predictions are null, and left out of macro F1. AUROC and
    average precision are means over the labels for which the references hold both values; null where there is none,
    or where a probability is not a number.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: probabilities; references: 0 or 1; one list per example",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int8")),
                }
            ),
        )

    def _compute(self, predictions, references, label_names, thresholds=None):
        scores = np.asarray(predictions, dtype=np.float64)
        truth = np.asarray(references, dtype=np.int8)
        limits = np.full(len(label_names), 0.5) if thresholds is None else np.asarray(thresholds)
        chosen = (scores >= limits).astype(np.int8)
        table = precision_recall_fscore_support(truth, chosen, average=None, zero_division=0)
        micro = precision_recall_fscore_support(truth, chosen, average="micro", zero_division=0)
        per_class = {}
        for index, (name, row) in enumerate(zip(label_names, zip(*table, strict=True), strict=True)):
            num_predicted = int(chosen[:, index].sum())
            values = [float(value) if row[3] or num_predicted else None for value in row[:3]]
            per_class[name] = dict(zip(("precision", "recall", "f1"), values, strict=True))
            per_class[name] |= {"support": float(row[3]), "predicted": float(num_predicted)}
            per_class[name] |= ranked(truth[:, index], scores[:, index])
            if thresholds is not None:
                per_class[name]["threshold"] = float(limits[index])
        of_pairs = ranked(truth.ravel(), scores.ravel())
        return {
            "accuracy": float(accuracy_score(truth, chosen)),
            "macro_f1": mean_of_classes(per_class, "f1"),
            "micro_f1": float(micro[2]),
            **{f"macro_{name}": mean_of_classes(per_class, name) for name in of_pairs},
            **{f"micro_{name}": value for name, value in of_pairs.items()},
            "per_class": per_class,
        }
