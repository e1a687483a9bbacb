"""How well `recipes.medical_lm` defines clinical terms after some minutes: perplexity on held-out families of terms.

Runs the recipe on its embedded model and data by `accelerate launch`, and takes the figures that it writes. Beside
it, on the same held-out tokens (those of the definitions, and the token that ends them):

- the model before the training, evaluated in the same way;
- a unigram and a bigram model of the same tokens (Witten-Bell's interpolation), counted over all definitions to train
  on, of which the run sees a part.

    python tests/bench/language_quality.py --threads 2 -- --max_steps 40 --effective_batch_size 32
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, print_header, print_table, use_threads
from held_out import evaluate, rows_of

from hf_accum.cli.parser import parse
from hf_accum.distributed.ranks import OneRank
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.models.trainable import load_trainable
from hf_accum.tasks.causal_lm.data import Passage, PassageData
from hf_accum.tasks.causal_lm.task import CausalTexts
from recipes.medical_lm import MedicalLmConfig, open_data, spec_of, task_of

_START = -1


def pairs_of(passages: Iterable[Passage]) -> Iterator[tuple[int, int]]:
    """Each token that is predicted with the one before it; the first of an answer has none."""
    for passage in passages:
        tokens, is_target = passage.tokens.tolist(), passage.is_target.tolist()
        for place, token in enumerate(tokens):
            if is_target[place]:
                yield tokens[place - 1] if is_target[place - 1] else _START, token


class Bigrams:
    """Witten and Bell's interpolation of bigrams with unigrams, and of these with equal chances."""

    def __init__(self, pairs: Iterable[tuple[int, int]], num_tokens: int) -> None:
        self.pairs = Counter(pairs)
        self.num_tokens = num_tokens
        self.before: Counter[int] = Counter()
        self.followers: Counter[int] = Counter()
        self.tokens: Counter[int] = Counter()
        for (before, token), number in self.pairs.items():
            self.before[before] += number
            self.followers[before] += 1
            self.tokens[token] += number

    def unigram(self, token: int) -> float:
        """The chance of a token."""
        new = len(self.tokens)
        return (self.tokens[token] + new / self.num_tokens) / (self.tokens.total() + new)

    def bigram(self, before: int, token: int) -> float:
        """The chance of a token behind another one."""
        new = self.followers[before]
        rest = self.unigram(token)
        return (self.pairs[before, token] + new * rest) / (self.before[before] + new) if new else rest


def untrained(config: MedicalLmConfig, data: PassageData, task: CausalTexts) -> dict[str, Any]:
    """The figures of the model as it is."""
    assert task.tokenizer is not None
    model = load_trainable(spec_of(config), task.tokenizer, config, device=torch.device("cpu")).model
    return evaluate(model, task, data, 8)


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("flags", nargs="*", help="of the recipe, behind --")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    config = parse(MedicalLmConfig, "", arguments.flags)
    tokenizer: Any = load_tokenizer(spec_of(config).name, config.trust)
    data = open_data(config, OneRank(), tokenizer)
    task = task_of(config, tokenizer, "no")
    passages = {side: [task.prepare(row) for _, row in rows_of(data, side)] for side in (False, True)}
    counted, held_out = Bigrams(pairs_of(passages[False]), len(tokenizer)), list(pairs_of(passages[True]))
    rows = []
    for name, chance in (
        ("unigrams", lambda before, token: counted.unigram(token)),
        ("bigrams", lambda before, token: counted.bigram(before, token)),
    ):
        loss = -sum(math.log(chance(*pair)) for pair in held_out) / len(held_out)
        rows.append((name, f"{len(passages[False]):,}", f"{loss:.3f}", f"{math.exp(loss):.1f}", "", ""))
    started = time.perf_counter()
    before = untrained(config, data, task)
    assert before["num_tokens"] == len(held_out)
    rows.append(_row("SmolLM2 before", "0", before, time.perf_counter() - started))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        started = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
                *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "recipes.medical_lm"),
                *("--output_dir", str(output), *arguments.flags),
            ],
            check=True,
        )
        seconds = time.perf_counter() - started
        after = json.loads((output / "evaluation.json").read_text())
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    number = sum(line["num_examples"] for line in lines)
    rows.append(_row("SmolLM2 after", f"{number:,}", after, seconds))
    print()
    print(f"{before['num_examples']:,} held-out definitions, {len(held_out):,} tokens to predict")
    print_table(("model", "examples seen", "loss", "perplexity", "next token right", "seconds"), rows)


def _row(name: str, examples: str, figures: dict[str, Any], seconds: float) -> tuple[str, ...]:
    return (
        *(name, examples, f"{figures['loss']:.3f}", f"{figures['perplexity']:.2f}"),
        *(f"{figures[CausalTexts.accuracy]:.3f}", f"{seconds:.0f}"),
    )


if __name__ == "__main__":
    main()
