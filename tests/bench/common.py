"""What the benchmarks share: a header of command, device and versions, tables, the recipe's data, MiniLM."""

import argparse
import os
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hf_accum.config.lora import LoraConfig
from recipes.clinical_classification import ClinicalClassificationConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from torch.optim import Optimizer

    from hf_accum.accumulation.example import Example
    from hf_accum.accumulation.execution import WindowExecution
    from hf_accum.accumulation.splitting import Cutter
    from hf_accum.data.source import Row, Source
    from hf_accum.tasks.labels import LabelColumn
    from hf_accum.tasks.text_classification.task import TextClassification

_LIBRARIES = ("torch", "accelerate", "transformers", "datasets", "peft", "numpy", "scikit-learn")


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: %(default)s)")
    return parser


def use_threads(num_threads: int) -> None:
    """Let torch compute on so many cores."""
    import torch

    torch.set_num_threads(num_threads)


def print_header(num_threads: int) -> None:
    """Print the command, the device and the versions: what a figure is worth nothing without."""
    command = shlex.join([f"tests/bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    print(f"command:  python {command}")
    print(f"device:   CPU {_cpu_name()}, {num_threads} of {os.cpu_count()} cores used by torch")
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    print(f"versions: Python {platform.python_version()}, {libraries}")
    print(flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for cells in (columns, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |")
    print(flush=True)


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class RecipeData:
    """The rows of the recipe's dataset on the two sides of its own held-out split."""

    train: "list[Row]"
    held_out: "list[Row]"
    labels: "LabelColumn"
    text_column: str

    def texts(self, rows: "Sequence[Row]") -> list[str]:
        """The rows' texts."""
        return [row[self.text_column] for row in rows]

    def classes(self, rows: "Sequence[Row]") -> list[int]:
        """The rows' classes, as indices of the labels' names."""
        return [self.labels.names.index(self.labels.keys(row)[0]) for row in rows]


def load_recipe_data(config: ClinicalClassificationConfig | None = None) -> RecipeData:
    """Read what `recipes.clinical_classification` would train and evaluate on, by its own code; or else synopses."""
    from hf_accum.data.source import good_rows
    from hf_accum.distributed.ranks import OneRank
    from hf_accum.tasks.tokenization import text_of
    from recipes.clinical_classification import open_data

    config = config or ClinicalClassificationConfig(dataset="embedded:synopses")
    data = open_data(config, OneRank())

    def read(held_out: bool) -> "list[Row]":
        def usable(row: "Row") -> "Row | None":
            text_of(row, config.text_column)
            data.labels.keys(row)
            return row if data.is_held_out(row, held_out) == held_out else None

        source = data.eval_source if held_out else data.source
        return [
            row
            for shard in range(source.num_shards)
            for _, row in good_rows(source, shard, 0, usable, config.on_bad_row, Counter())
        ]

    return RecipeData(read(held_out=False), read(held_out=True), data.labels, config.text_column)


def source_of(rows: "Sequence[Row]") -> "Source":
    """Rows in memory as a dataset of one shard."""
    from hf_accum.data.source import Source

    return Source(("memory",), lambda _, start: enumerate(rows[start:], start), {})


def minilm_task(labels: "LabelColumn", text_column: str, max_length: int) -> "TextClassification":
    """The recipe's task on the CPU, without class weights, by MiniLM's tokenizer."""

    from hf_accum.accumulation.losses import CrossEntropy
    from hf_accum.models.tokenizers import load_tokenizer
    from hf_accum.tasks.text_classification.task import TextClassification
    from recipes.embedded.models import minilm

    tokenizer = load_tokenizer(minilm())
    return TextClassification(text_column, labels, CrossEntropy(), tokenizer, max_length)


def load_minilm(
    task: "TextClassification",
    lora: LoraConfig,
    *,
    seed: int = 0,
    dropout: float | None = None,
) -> "nn.Module":
    """MiniLM with adapters, from the very weights that a recipe's run of this seed starts from."""
    import torch

    from hf_accum.models.trainable import load_trainable
    from recipes.clinical_classification import spec_of

    assert task.tokenizer is not None
    config = ClinicalClassificationConfig(lora=lora, seed=seed, dropout=dropout, max_length=task.max_length)
    return load_trainable(spec_of(config, task.labels), task.tokenizer, config, device=torch.device("cpu")).model


def evenly_spaced(rows: "Sequence[Row]", number: int) -> "list[Row]":
    """So many of the rows, from all over them."""
    number = min(number, len(rows))
    return [rows[index * len(rows) // number] for index in range(number)]


def encoded(task: "TextClassification", rows: "Sequence[Row]") -> "list[Example]":
    """The rows as examples, in order."""
    return list(task.encode([(str(index), task.prepare(row)) for index, row in enumerate(rows)]))


def learned_cutter(
    task: "TextClassification",
    model: "nn.Module",
    windows: "Sequence[Sequence[Example]]",
    most: int,
    num_passes: int = 3,
) -> "Cutter":
    """A cutter of at most `most` examples, whose costs were learned from passes over some windows."""
    import torch

    from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
    from hf_accum.accumulation.splitting import Cutter
    from hf_accum.accumulation.time_model import WorkingCosts
    from hf_accum.device.timer import Stopwatch

    costs = WorkingCosts()
    cutter = Cutter(WorkingCapacity(Capacity(most)), costs)
    for _ in range(num_passes):
        for window in windows:
            for piece in cutter.cut(window):
                stopwatch = Stopwatch(torch.device("cpu"))
                (task.summed_loss(model, task.collate(piece)) / len(window)).backward()
                stopwatch.stop()
                costs.observe(len(piece), max(example.length for example in piece), stopwatch)
            cutter.window_done()
    return cutter


def train(
    windows: "Iterable[WindowExecution]",
    cutter: "Cutter",
    accelerator: "Accelerator",
    task: "TextClassification",
    model: "nn.Module",
    optimizer: "Optimizer",
) -> "Iterator[WindowExecution]":
    """The loop of a recipe, without its log: each window, once its step is made."""
    from hf_accum import accumulate

    for window in windows:
        for micro_batch in window.micro_batches(cutter):
            with accumulate(accelerator, model, micro_batch):
                loss = task.summed_loss(model, micro_batch.batch)
                accelerator.backward(micro_batch.scaled(loss))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield window
