"""What negatives from the whole window are worth: windows of 256 pairs at the memory of 16, and accumulated 16s.

Clinical terms and their definitions (the default of `recipes.term_retrieval`), MiniLM with the recipe's LoRA, the
same pairs in the same order, the same optimizer steps and learning rates:

- whole window: this project's loop, each pair told from all 255 others, with 16 texts in a forward: the 16 longest
  definitions take as much as 16 pairs;
- accumulated: the usual loop, the mean of 16 losses of 16 pairs, each told from 15 others;
- batch of 256: all 512 texts in two forwards of plain torch, for its memory.

Before them, on the same held-out terms: TF-IDF, and MiniLM as it comes.

    python tests/bench/retrieval.py --threads 2
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import argument_parser, print_header, print_table, use_threads
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import get_scheduler
from transformers.utils import logging as transformers_logging

from hf_accum import accumulate
from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.grad_cache import RepresentationCache
from hf_accum.accumulation.splitting import Cutter
from hf_accum.byte_sizes import format_bytes
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.data.source import Row
from hf_accum.device.live_bytes import LiveBytes
from hf_accum.distributed.ranks import OneRank
from hf_accum.models.optimizer import build_optimizer
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.models.trainable import load_trainable
from hf_accum.recipe import Pipeline, WindowStream, ranks_of, start_accelerator
from recipes.term_retrieval import TermRetrievalConfig, open_data, spec_of, task_of

CPU = torch.device("cpu")
WINDOW, AT_ONCE = 256, 16  # pairs; pairs or texts
CONTENDERS = ("accumulated", "whole window", "batch of 256")


class Bench:
    """The data, and runs over it."""

    def __init__(self, num_steps: int) -> None:
        self.config = TermRetrievalConfig(num_epochs=None, max_steps=num_steps)
        self.num_steps = num_steps
        self.data = open_data(self.config, OneRank())
        self.tokenizer = load_tokenizer(spec_of(self.config).name, self.config.trust)
        self.task = task_of(self.config, self.tokenizer)
        self.accelerator = start_accelerator()
        self.ranks = ranks_of(self.accelerator)
        self.cutter = Cutter(WorkingCapacity(Capacity(AT_ONCE)))

    def model(self) -> nn.Module:
        """As the recipe's run of seed 0 starts."""
        return load_trainable(spec_of(self.config), self.tokenizer, self.config, device=CPU).model

    def stream(self, held_out: bool) -> WindowStream[Any]:
        """Windows to train on, or the held-out ones."""

        def prepare(row: Row) -> Any:
            return self.task.prepare(row) if self.data.is_held_out(row, held_out) == held_out else None

        how: dict[str, Any] = {"num_epochs": 1, "shuffle_block_size": 1} if held_out else {"num_epochs": None}
        return WindowStream(
            self.data.source,
            prepare,
            self.task.encode,
            ranks=self.ranks,
            effective_batch_size=WINDOW,
            seed=0,
            **how,
        )

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """On the held-out terms."""
        return self.task.evaluate(model, self.stream(held_out=True), ranks=self.ranks, cutter=self.cutter)

    def tf_idf(self) -> dict[str, Any]:
        """The figures of a plain index, computed as for vectors of a model."""
        texts: dict[str, str] = {}
        encoded = []
        for shard in range(self.data.source.num_shards):
            for _, row in self.data.source.read(shard, 0):
                assert isinstance(row, Mapping)
                if not self.data.is_held_out(row, False):
                    continue
                pair = self.task.prepare(row)
                (example,) = self.task.encode([(str(len(encoded)), pair)])
                for part, text in zip(example.parts, pair, strict=True):
                    texts[part.id] = text
                    encoded.append((part.id, part.features.get("key")))
        vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit(texts.values())
        weights: Any = vectorizer.transform(texts.values())
        vectors = weights.toarray().astype(np.float32)
        return self.task.judge([(*text, vector) for text, vector in zip(encoded, vectors, strict=True)])

    def train(self, contender: str, learning_rate: float) -> tuple[dict[str, Any], float, int]:
        """The figures after training; seconds; the most live bytes over a window beyond those before it."""
        model = self.model()
        optimizer = build_optimizer(
            model, OptimizationFlags(learning_rate=learning_rate, weight_decay=self.config.weight_decay)
        )
        scheduler = get_scheduler("linear", optimizer, round(0.1 * self.num_steps), self.num_steps)
        step = {"whole window": self.whole_window, "accumulated": self.accumulated, "batch of 256": self.at_once}
        seconds, peak_bytes = 0.0, 0
        num_timed = 0
        for execution in Pipeline(self.stream(held_out=False), self.cutter, self.task.collate, CPU):
            started = time.perf_counter()
            if (
                execution.window.step == 2
            ):  # the optimizer's state is there; counting takes time: not a step that is timed
                with LiveBytes() as live:
                    step[contender](model, execution)
                    self.update(model, optimizer, scheduler)
                peak_bytes = live.peak_bytes
            else:
                step[contender](model, execution)
                self.update(model, optimizer, scheduler)
                seconds += time.perf_counter() - started
                num_timed += 1
            if execution.window.step == (2 if contender == "batch of 256" else self.num_steps):
                break
        return self.evaluate(model), seconds / num_timed, peak_bytes

    def update(self, model: nn.Module, optimizer: Optimizer, scheduler: Any) -> None:
        """The step of the optimizer."""
        self.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    def whole_window(self, model: nn.Module, execution: WindowExecution) -> None:
        """The loop of the recipe."""
        cache = RepresentationCache(execution, self.task.objective, self.ranks)
        for micro_batch in execution.micro_batches(self.cutter, no_grad_pass=self.ranks):
            with accumulate(self.accelerator, model, micro_batch):
                if micro_batch.is_no_grad_pass:
                    cache.keep(micro_batch, self.task.vectors(model, micro_batch.batch))
                else:
                    gradient = cache.gradient(micro_batch)
                    product = self.task.summed_loss(model, (micro_batch.batch, gradient))
                    self.accelerator.backward(micro_batch.scaled(product, noted=cache.loss(micro_batch)))

    def accumulated(self, model: nn.Module, execution: WindowExecution) -> None:
        """The mean of the losses of small batches, each told from its own pairs."""
        for start in range(0, WINDOW, AT_ONCE):
            pairs = execution.window.examples[start : start + AT_ONCE]
            self.plain_loss(model, pairs).div(WINDOW // AT_ONCE).backward()

    def at_once(self, model: nn.Module, execution: WindowExecution) -> None:
        """One batch."""
        self.plain_loss(model, execution.window.examples).backward()

    def plain_loss(self, model: nn.Module, pairs: Sequence[Example]) -> Tensor:
        """As sentence-transformers' MultipleNegativesRankingLoss, by torch alone: queries and documents apart."""
        queries, documents = (
            F.normalize(self.task.vectors(model, self.task.collate([pair.parts[side] for pair in pairs])), dim=-1)
            for side in (0, 1)
        )
        keys = torch.tensor([pair.parts[1].features["key"] for pair in pairs])
        same = (keys[:, None] == keys[None, :]) & ~torch.eye(len(pairs), dtype=torch.bool)
        scores = (queries @ documents.T / self.config.temperature).masked_fill(same, -torch.inf)
        return F.cross_entropy(scores, torch.arange(len(pairs)))


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num_steps", type=int, default=60, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[3e-4, 1e-3], help="each tried by both")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="(default: all)")
    parser.add_argument("--no_baselines", action="store_true", help="train only")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    transformers_logging.set_verbosity_error()
    bench = Bench(arguments.num_steps)
    rows = []

    def row(name: str, figures: dict[str, Any], seconds: float | None = None, peak: int | None = None) -> None:
        shares = [f"{figures[key]:.3f}" for key in ("recall_at_1", "recall_at_10", "mrr")]
        rows.append(
            [name, *shares, "" if seconds is None else f"{seconds:.2f}", "" if peak is None else format_bytes(peak)]
        )
        print(*rows[-1], flush=True)

    if not arguments.no_baselines:
        row("TF-IDF", bench.tf_idf())
        figures = bench.evaluate(bench.model())
        print(f"{figures['num_examples']} held-out terms, {figures['num_documents']} definitions")
        row("MiniLM as it comes", figures)
    for learning_rate in arguments.learning_rates:
        for contender in arguments.contenders:
            if contender != "batch of 256":
                row(f"{contender}, {learning_rate:g}", *bench.train(contender, learning_rate))
    if "batch of 256" in arguments.contenders:
        _, seconds, peak = bench.train("batch of 256", arguments.learning_rates[0])
        rows.append(["batch of 256", "", "", "", f"{seconds:.2f}", format_bytes(peak)])
    print()
    print_table(("", "recall@1", "recall@10", "MRR", "seconds a window", "live bytes of a window"), rows)


if __name__ == "__main__":
    main()
