"""What this project's loop costs beside a hand-written torch loop over exactly the same micro-batches.

Both train MiniLM with LoRA on the same few windows of real clinical synopses, in one process, on the same
model and optimizer, in turns (A B, then B A), so that a slow moment of the machine meets both:

- hf_accum: the recipe's loop, whole: a `WindowStream` that tokenises in its background thread,
  `micro_batches`, padding, `accumulate`, accelerate's backward and clipping, the step, the
  schedule, and `RunLog` with its metrics.jsonl;
- by hand: tensors padded beforehand, summed loss divided by the window's weight, backward, clip, step,
  schedule.

Weights and schedule go on from round to round: only time is measured. One round is one pass over the
windows. The table has the median, least and greatest over the rounds of the seconds per round: wall
clock, and processor time of the process with all its threads, which other jobs on the machine disturb
less. Ratio and difference are medians over the pairs of rounds that ran beside each other.

On a fast device the model takes a smaller share. `--tiny_model` puts a BERT of one layer, 32 wide, in
MiniLM's place: what is left is nearly the loops alone, and their difference what this project's costs.
"""

import gc
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from common import (
    argument_parser,
    load_minilm,
    load_recipe_data,
    minilm_task,
    print_header,
    print_table,
    source_of,
    use_threads,
)
from rich.console import Console
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, get_scheduler

from hf_accum import WindowExecution, accumulate
from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.window_cut import cut_window
from hf_accum.config.lora import LoraConfig
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.data.source import Row
from hf_accum.distributed.ranks import Ranks
from hf_accum.models.lora import add_lora
from hf_accum.models.optimizer import build_optimizer
from hf_accum.recipe import WindowStream, ranks_of, start_accelerator
from hf_accum.run.log import RunLog
from hf_accum.tasks.text_classification.task import TextClassification, model_config

MAX_GRAD_NORM = 1.0

TensorWindow = list[tuple[dict[str, Tensor], Tensor]]
"""Inputs and labels of each micro-batch."""


@dataclass(frozen=True)
class Training:
    """What both loops train, and with what."""

    accelerator: Accelerator
    ranks: Ranks
    task: TextClassification
    model: nn.Module
    optimizer: Any
    scheduler: Any
    effective_batch_size: int
    micro_batch_size: int

    def windows(self, rows: Sequence[Row]) -> WindowStream[Any]:
        """The rows as windows, in their order."""
        return WindowStream(
            source_of(rows),
            self.task.prepare,
            self.task.encode,
            ranks=self.ranks,
            effective_batch_size=self.effective_batch_size,
            seed=0,
            shuffle_block_size=1,
        )


@dataclass(frozen=True)
class Timing:
    """One round of one loop."""

    wall_seconds: float
    cpu_seconds: float


def by_hf_accum(training: Training, rows: Sequence[Row]) -> None:
    """One round of the recipe's loop."""
    accelerator, model, task = training.accelerator, training.model, training.task
    optimizer, scheduler = training.optimizer, training.scheduler
    num_steps = -(-len(rows) // training.effective_batch_size)
    with (
        tempfile.TemporaryDirectory() as folder,
        RunLog(
            accelerator,
            training.ranks,
            Path(folder),
            num_steps=num_steps,
            log_every=10,
            console=Console(file=io.StringIO()),
        ) as log,
    ):
        for window in training.windows(rows):
            execution = WindowExecution(window, task.collate)
            for micro_batch in execution.micro_batches(training.micro_batch_size):
                with accumulate(accelerator, model, micro_batch):
                    loss = task.summed_loss(model, micro_batch.batch)
                    accelerator.backward(micro_batch.scaled(loss))
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            assert grad_norm is not None
            learning_rate = scheduler.get_last_lr()[0]
            optimizer.step()
            if not accelerator.optimizer_step_was_skipped:
                scheduler.step()
            optimizer.zero_grad()
            log.step(execution, grad_norm, learning_rate)


def by_hand(training: Training, windows: Sequence[TensorWindow]) -> None:
    """One round of a loop in plain torch."""
    model, optimizer, scheduler = training.model, training.optimizer.optimizer, training.scheduler
    parameters = [p for p in model.parameters() if p.requires_grad]
    for window in windows:
        num_examples = sum(len(labels) for _, labels in window)
        for inputs, labels in window:
            logits = model(**inputs).logits
            loss = F.cross_entropy(logits, labels, reduction="sum") / num_examples
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def start_training(
    plain_model: nn.Module, task: TextClassification, *, effective_batch_size: int, micro_batch_size: int
) -> Training:
    """A model with its optimizer, on the CPU."""
    accelerator = start_accelerator()
    plain_optimizer = build_optimizer(plain_model, OptimizationFlags(learning_rate=1e-5, weight_decay=0.01))
    scheduler = get_scheduler("constant", plain_optimizer)
    model, optimizer = accelerator.prepare(plain_model, plain_optimizer)
    return Training(
        accelerator,
        ranks_of(accelerator),
        task,
        model,
        optimizer,
        scheduler,
        effective_batch_size=effective_batch_size,
        micro_batch_size=micro_batch_size,
    )


def build_tiny_model(task: TextClassification, lora: LoraConfig, *, dropout: float) -> nn.Module:
    """A BERT with random weights that takes next to no time, with adapters."""
    assert task.tokenizer is not None
    config = BertConfig(
        vocab_size=len(task.tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **model_config(task.labels),
    )
    model = BertForSequenceClassification(config).train()
    return add_lora(model, lora, task_type="SEQ_CLS", new_modules=["classifier"], dropout=dropout)


def timed(work: Callable[[], None]) -> Timing:
    """Run once; garbage is collected before, so that nobody pays for another's."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(works: Sequence[Callable[[], None]], num_rounds: int) -> list[list[Timing]]:
    """Time some works so many times each, in an order that turns round every time."""
    timings: list[list[Timing]] = [[] for _ in works]
    for number in range(num_rounds):
        order = range(len(works)) if number % 2 == 0 else reversed(range(len(works)))
        for index in order:
            timings[index].append(timed(works[index]))
    return timings


def report(
    ours: Sequence[Timing],
    others: Sequence[Timing],
    num_windows: int,
    names: tuple[str, str] = ("hf_accum", "by hand"),
) -> None:
    """Print the table, the ratios, and the difference for each window."""

    def cells(name: str, clock: str, seconds: Sequence[float]) -> tuple[str, ...]:
        return name, clock, f"{statistics.median(seconds):.3f}", f"{min(seconds):.3f}", f"{max(seconds):.3f}"

    loops = tuple(zip(names, (ours, others), strict=True))
    wall = [cells(name, "wall", [t.wall_seconds for t in timings]) for name, timings in loops]
    cpu = [cells(name, "processor", [t.cpu_seconds for t in timings]) for name, timings in loops]
    print_table(("loop", "clock", "median s", "least s", "greatest s"), [*wall, *cpu])
    for clock, pairs in (
        ("wall clock", [(a.wall_seconds, b.wall_seconds) for a, b in zip(ours, others, strict=True)]),
        ("processor time", [(a.cpu_seconds, b.cpu_seconds) for a, b in zip(ours, others, strict=True)]),
    ):
        ratios = [a / b for a, b in pairs]
        milliseconds = statistics.median((a - b) / num_windows * 1_000 for a, b in pairs)
        print(
            f"{names[0]} / {names[1]}, {clock}: median {statistics.median(ratios):.4f} "
            f"({min(ratios):.4f} to {max(ratios):.4f}); median difference {milliseconds:.2f} ms a window"
        )


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num_rounds", type=int, default=6, help="of each loop (default: %(default)s)")
    parser.add_argument("--num_windows", type=int, default=2, help="in a round (default: %(default)s)")
    parser.add_argument("--effective_batch_size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--micro_batch_size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--dropout", type=float, default=0.0, help="of model and adapters (default: %(default)s)")
    parser.add_argument("--tiny_model", action="store_true", help="in MiniLM's place")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)

    data = load_recipe_data()
    task = minilm_task(data.labels, data.text_column, max_length=512)
    load = build_tiny_model if arguments.tiny_model else load_minilm
    training = start_training(
        load(task, LoraConfig(), dropout=arguments.dropout),
        task,
        effective_batch_size=arguments.effective_batch_size,
        micro_batch_size=arguments.micro_batch_size,
    )
    num_rows = arguments.num_windows * arguments.effective_batch_size
    # From all over the dataset, not its beginning only.
    rows = data.train[:: max(1, len(data.train) // num_rows)][:num_rows]
    cutter = Cutter(WorkingCapacity(Capacity(arguments.micro_batch_size)))
    windows = [
        [task.collate(piece) for piece in cut_window(window, cutter).pieces] for window in training.windows(rows)
    ]
    works = (lambda: by_hf_accum(training, rows), lambda: by_hand(training, windows))
    for work in works:
        work()  # warm up
    num_tokens = sum(int(inputs["attention_mask"].sum()) for window in windows for inputs, _ in window)
    print(f"{len(windows)} windows of {arguments.effective_batch_size} texts, {num_tokens:,} tokens, ", end="")
    print(f"micro-batches of {arguments.micro_batch_size}; {arguments.num_rounds} rounds of each loop\n")
    report(*in_turns(works, arguments.num_rounds), num_windows=len(windows))


if __name__ == "__main__":
    main()
