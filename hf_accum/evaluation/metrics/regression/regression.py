"""Mean squared and absolute error, and Pearson and Spearman correlation."""

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr

_DESCRIPTION = "Mean squared error, mean absolute error, Pearson and Spearman correlation."


class Regression(evaluate.Metric):
    """Numbers against numbers; a correlation is null where one side is constant or not finite."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: numbers",
            features=datasets.Features(
                {"predictions": datasets.Value("float32"), "references": datasets.Value("float32")}
            ),
        )

    def _compute(self, predictions, references):
        predicted = np.asarray(predictions, dtype=np.float64)
        truth = np.asarray(references, dtype=np.float64)
        varies = len(truth) > 1 and bool(np.ptp(predicted)) and bool(np.ptp(truth))
        varies = varies and bool(np.isfinite(predicted).all())
        return {
            "mse": float(np.mean((predicted - truth) ** 2)),
            "mae": float(np.mean(np.abs(predicted - truth))),
            "pearson": float(pearsonr(predicted, truth)[0]) if varies else None,
            "spearman": float(spearmanr(predicted, truth)[0]) if varies else None,
        }
