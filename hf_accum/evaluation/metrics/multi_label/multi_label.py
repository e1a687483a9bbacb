"""Exact-match accuracy, macro and micro F1, AUROC and a table by label, for any number of labels per example."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

_DESCRIPTION = "Exact-match accuracy, macro and micro F1 at a threshold of 0.5, macro and micro AUROC."


class MultiLabel(evaluate.Metric):
    """Probabilities against zeros and ones, (num_examples, num_labels).

    AUROC is the mean over the labels for which the references hold both values; null where there is none,
    or where a probability is not a number.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: probabilities; references: 0 or 1; one list per example",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int8")),
                }
            ),
        )

    def _compute(self, predictions, references, label_names):
        scores = np.asarray(predictions, dtype=np.float32)
        truth = np.asarray(references, dtype=np.int8)
        chosen = (scores >= 0.5).astype(np.int8)
        table = precision_recall_fscore_support(truth, chosen, average=None, zero_division=0)
        micro = precision_recall_fscore_support(truth, chosen, average="micro", zero_division=0)

        def auroc_of(truth, scores):
            is_defined = 0 < truth.mean() < 1 and np.isfinite(scores).all()
            return float(roc_auc_score(truth, scores)) if is_defined else None

        aurocs = [auroc_of(truth[:, label], scores[:, label]) for label in range(len(label_names))]
        known = [auroc for auroc in aurocs if auroc is not None]
        per_class = {}
        for name, auroc, row in zip(label_names, aurocs, zip(*table, strict=True), strict=True):
            figures = dict(zip(("precision", "recall", "f1", "support"), map(float, row), strict=True))
            per_class[name] = {**figures, "auroc": auroc}
        return {
            "accuracy": float(accuracy_score(truth, chosen)),
            "macro_f1": float(table[2].mean()),
            "micro_f1": float(micro[2]),
            "macro_auroc": float(np.mean(known)) if known else None,
            "micro_auroc": auroc_of(truth.ravel(), scores.ravel()),
            "per_class": per_class,
        }
