"""Entity-level precision, recall and F1, overall and by type, of tagged words."""

import datasets
import evaluate
from seqeval.metrics import accuracy_score, classification_report

_DESCRIPTION = (
    "An entity counts as found where its first word, its last word and its type are right, as in the CoNLL tasks. "
    "Micro-averaged precision, recall and F1, macro-averaged F1, and all of them by type; accuracy that of words."
)


class Entities(evaluate.Metric):
    """Lists of tags in the scheme BIO (B-Drug, I-Drug, O) against such lists, one for each text."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: a list of tags for each text",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions, references):
        report = classification_report(references, predictions, output_dict=True, zero_division=0)
        micro = report.pop("micro avg", None) or {"precision": 0.0, "recall": 0.0, "f1-score": 0.0}
        macro = report.pop("macro avg")
        report.pop("weighted avg")
        return {
            "precision": float(micro["precision"]),
            "recall": float(micro["recall"]),
            "f1": float(micro["f1-score"]),
            "macro_f1": float(macro["f1-score"]),
            "word_accuracy": float(accuracy_score(references, predictions)),
            "per_class": {
                name: {
                    "precision": float(row["precision"]),
                    "recall": float(row["recall"]),
                    "f1": float(row["f1-score"]),
                    "support": float(row["support"]),
                }
                for name, row in report.items()
            },
        }
