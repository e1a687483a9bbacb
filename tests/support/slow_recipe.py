"""The classification recipe, whose predictor does what texts ask for: sleeps, fails, runs out of memory."""

import time
from dataclasses import dataclass
from typing import Any

from hf_accum.errors import OutOfMemory
from hf_accum.tasks.text_classification.prediction import TextPredictor
from recipes.clinical_classification import ClinicalClassificationConfig, train, workload

__all__ = ["predictor", "train", "workload"]


@dataclass(frozen=True)
class _Obedient(TextPredictor):
    def encode(self, rows: Any) -> Any:
        texts = [texts for _, texts in rows]
        if any("sleep" in str(of_row) for of_row in texts):
            time.sleep(4)
        if any("fail" in str(of_row) for of_row in texts):
            raise RuntimeError(f"a fault with {texts}")
        if any("memory" in str(of_row) for of_row in texts):
            raise OutOfMemory("a single example does not fit")
        return super().encode(rows)


def predictor(config: ClinicalClassificationConfig, task: Any) -> _Obedient:
    return _Obedient(task, config.template)
