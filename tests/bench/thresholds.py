"""Few positives in many labels: macro-F1 at 0.5 and at tuned thresholds, with plain and with balanced weights.

Synthetic notes: each of 10 findings is in 2 % of them, by a word of its own that others have too, more rarely. A
small BERT with random weights learns them by the recipe itself, once for each combination.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from common import print_header, print_table
from transformers import AutoTokenizer, BertConfig, BertModel

from hf_accum.config.lora import LoraConfig
from recipes.clinical_classification import ClinicalClassificationConfig, train
from recipes.embedded.models import minilm

SHARE = 0.02
NUM_LABELS = 10
WORDS = [
    "ache",
    "burn",
    "chill",
    "cramp",
    "cough",
    "fever",
    "itch",
    "nausea",
    "pain",
    "rash",
    "sneeze",
    "sweat",
    "swell",
    "throb",
    "tremor",
    "wheeze",
]


def save_notes(file: Path, num_notes: int, seed: int) -> None:
    """Notes of some dozen words; two words run together show a finding, as a rule."""
    draw = random.Random(seed)
    pairs = [tuple(draw.sample(WORDS, 2)) for _ in range(NUM_LABELS)]
    with file.open("w") as target:
        for number in range(num_notes):
            labels = [index for index in range(NUM_LABELS) if draw.random() < SHARE]
            words = draw.choices(WORDS, k=12)
            for index in labels:
                words += [f"{first}{second}" for first, second in [pairs[index]] * 2]
            if draw.random() < 0.1:  # the same word without the finding
                words.append("".join(draw.choice(pairs)))
            draw.shuffle(words)
            row = {"text": " ".join(words), "label": [f"finding-{index}" for index in labels], "patient": number // 2}
            target.write(json.dumps(row) + "\n")


def save_model(folder: Path) -> None:
    """Two layers, 128 wide, with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    how: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
    }
    BertModel(BertConfig(vocab_size=len(tokenizer), **how)).save_pretrained(folder)


def main() -> None:
    """Train four times, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_notes", type=int, default=6_000)
    parser.add_argument("--num_epochs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_header(1)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_notes(folder / "notes.jsonl", arguments.num_notes, seed=0)
        save_model(folder / "model")
        choices: tuple[list[float] | Literal["balanced"], ...] = ([], "balanced")
        for weights in choices:
            for tuned in (False, True):
                for state in (AcceleratorState, GradientState, PartialState):
                    state._reset_state()
                started = time.perf_counter()
                config = ClinicalClassificationConfig(
                    model=str(folder / "model"),
                    dataset=str(folder / "notes.jsonl"),
                    output_dir=str(folder / f"run-{bool(weights)}-{tuned}"),
                    problem="multi_label_classification",
                    positive_weights=weights,
                    tune_thresholds=tuned,
                    group_column="patient",
                    eval_fraction=0.3,
                    num_epochs=arguments.num_epochs,
                    learning_rate=1e-3,
                    lora=LoraConfig(rank=0),
                    micro_batch_size=32,
                    save_every=None,
                )
                figures = train(config)
                low, high = figures["confidence_intervals"]["macro_f1"]
                f1 = f"{figures['macro_f1']:.3f}" if figures["macro_f1"] is not None else "-"
                seconds = f"{time.perf_counter() - started:.0f}"
                auroc, error = (f"{figures[name]:.3f}" for name in ("macro_auroc", "expected_calibration_error"))
                how = ("balanced" if weights else "none", "tuned" if tuned else "0.5")
                rows.append((*how, f1, f"{low:.3f} to {high:.3f}", auroc, error, seconds))
    headers = ("positive weights", "thresholds", "macro-F1", "95 % interval", "macro AUROC", "calibration error", "s")
    print_table(headers, rows)


if __name__ == "__main__":
    main()
