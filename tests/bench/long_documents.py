"""A task whose signal lies behind token 512: truncated texts beside windows, whose logits are pooled in three ways.

    python tests/bench/long_documents.py --threads 1

Texts of 600 to 1,500 made-up words, one token each. A tenth of the words behind the 540th are one of two signal
words, which is the label; the others are drawn alike for both. The model is a BERT of one layer with random weights,
trained whole by `recipes.clinical_classification` with the same flags and steps each time.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import argument_parser, print_header, print_table, use_threads

_ROOT = Path(__file__).parents[2]
_WORDS = tuple(f"w{index}" for index in range(200))
_SIGNALS = ("w0", "w1")
_FIRST = 540  # the place of the first word that may be a signal
_SHARE = 0.1


def make_rows(number: int, seed: int) -> list[dict[str, Any]]:
    """As many texts of each label."""
    draw = random.Random(seed)
    rows = []
    for index in range(number):
        words = [draw.choice(_WORDS[2:]) for _ in range(draw.randint(600, 1500))]
        for place in range(_FIRST, len(words)):
            if draw.random() < _SHARE:
                words[place] = _SIGNALS[index % 2]
        rows.append({"text": " ".join(words), "label": "ab"[index % 2]})
    return rows


def save_model(folder: Path) -> None:
    """A BERT of one layer, with 512 positions, and a tokenizer with a token for each word."""
    import torch
    from transformers import BertConfig, BertModel

    sys.path.insert(0, str(_ROOT / "tests" / "support"))
    from tiny import make_tokenizer

    tokenizer = make_tokenizer(_WORDS)
    torch.manual_seed(0)
    how: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 512}
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, pad_token_id=0, **how)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))


def main() -> None:
    """Train and print each."""
    parser = argument_parser(__doc__)
    parser.add_argument("--max_steps", type=int, default=30, help="(default: %(default)s)")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    from hf_accum.config.lora import LoraConfig
    from recipes.clinical_classification import ClinicalClassificationConfig, train

    print_header(arguments.threads)
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "bert")
        for split, number, seed in (("train", 160, 0), ("test", 100, 1)):
            lines = [json.dumps(row) + "\n" for row in make_rows(number, seed)]
            (folder / "texts").mkdir(exist_ok=True)
            (folder / "texts" / f"{split}.jsonl").write_text("".join(lines))
        for how in ("truncate", "mean", "max", "attention"):
            windows: dict[str, Any] = {} if how == "truncate" else {"long_texts": "windows", "window_pooling": how}
            config = ClinicalClassificationConfig(
                model=str(folder / "bert"),
                dataset=str(folder / "texts"),
                eval_split="test",
                output_dir=str(folder / how),
                pooling="mean",
                max_steps=arguments.max_steps,
                num_epochs=100,
                effective_batch_size=16,
                micro_batch_size=8,
                learning_rate=1e-2,
                dropout=0.0,
                lora=LoraConfig(rank=0),
                save_every=None,
                **windows,
            )
            started = time.perf_counter()
            figures = train(config)
            steps = [json.loads(line) for line in (folder / how / "metrics.jsonl").read_text().splitlines()]
            seconds = time.perf_counter() - started
            row = [figures["accuracy"], figures["macro_f1"], steps[-1]["loss"]]
            table.append([how, *(f"{value:.3f}" for value in row), f"{seconds:.0f}"])
    print_table(("long texts", "accuracy", "macro-F1", "last loss", "seconds"), table)


if __name__ == "__main__":
    main()
