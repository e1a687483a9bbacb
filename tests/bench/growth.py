"""How time and memory grow with the effective batch: one window of 64 up to 4,096 real synopses.

MiniLM with the recipe's LoRA, train mode; the recipe's loop, after a warm-up, at most `--most` examples in one
forward. The texts of each window are spread evenly over all texts by length, the longest among them. Each size in
processes of its own, which measure

- seconds: of the window, from its reading to the optimizer's step, cut by the same learned costs at every size;
- with micro-batches as large as allowed, so that the longest texts are in one: live bytes, the peak over the window
  of the tensors that operations made, the weights included; resident bytes, the peak of the process (`ru_maxrss`).

    python tests/bench/growth.py --threads 2
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from common import (
    argument_parser,
    encoded,
    evenly_spaced,
    learned_cutter,
    load_minilm,
    load_recipe_data,
    minilm_task,
    print_header,
    print_table,
    source_of,
    train,
    use_threads,
)

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.time_model import Costs, WorkingCosts
from hf_accum.config.lora import LoraConfig
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.device.live_bytes import LiveBytes, tensors_of
from hf_accum.device.malloc import return_freed_memory
from hf_accum.models.optimizer import build_optimizer
from hf_accum.recipe import Pipeline, WindowStream, ranks_of, start_accelerator

MIB = 2**20


def measure(what: str, effective_batch_size: int, most: int, costs: Costs) -> dict[str, Any]:
    """The seconds or the memory of one size, in this process."""
    accelerator = start_accelerator()
    return_freed_memory()  # as a run that finds its micro-batch by itself does
    data = load_recipe_data()
    task = minilm_task(data.labels, data.text_column, max_length=512)
    by_length = sorted(data.train, key=lambda row: -len(row[data.text_column]))
    # The longest ones stand in every window, so that all sizes have the same largest micro-batches.
    rows = [*by_length[:most], *evenly_spaced(by_length[most:], effective_batch_size - most)]
    model: Any = load_minilm(task, LoraConfig()).train()
    optimizer = build_optimizer(model, OptimizationFlags(learning_rate=3e-4, weight_decay=0.01))
    learned = WorkingCosts(costs, is_settled=True) if what == "time" else None
    cutter = Cutter(WorkingCapacity(Capacity(most)), learned)

    def one_window(rows: list[Any]) -> tuple[float, int]:
        stream = WindowStream(
            source_of(rows),
            task.prepare,
            task.encode,
            ranks=ranks_of(accelerator),
            effective_batch_size=len(rows),
            seed=0,
        )
        started, tokens = time.perf_counter(), 0
        windows = Pipeline(stream, cutter, task.collate, torch.device("cpu"))
        for window in train(windows, cutter, accelerator, task, model, optimizer):
            tokens = window.window.num_tokens
        return time.perf_counter() - started, tokens

    one_window(rows[: 2 * most])  # what is loaded and allocated once
    if what == "time":
        seconds, tokens = one_window(rows)
        return {"seconds": seconds, "tokens": tokens}
    with LiveBytes(held=tensors_of(model)) as live:
        one_window(rows)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"resident_bytes": resident, "live_bytes": live.peak_bytes}


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--sizes", default="64,256,1024,4096", help="with commas (default: %(default)s)")
    parser.add_argument("--most", type=int, default=16, help="examples that fit (default: %(default)s)")
    parser.add_argument("--only", choices=("time", "memory"), help="default: both")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--costs", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    if arguments.size is not None:
        costs = Costs.from_json(json.loads(arguments.costs))
        print(json.dumps(measure(arguments.only, arguments.size, arguments.most, costs)))
        return
    print_header(arguments.threads)
    data = load_recipe_data()
    task = minilm_task(data.labels, data.text_column, max_length=512)
    windows = [encoded(task, evenly_spaced(data.train, 128)[half::2]) for half in (0, 1)]
    cutter = learned_cutter(task, load_minilm(task, LoraConfig()).train(), windows, arguments.most)
    assert cutter.costs is not None
    given = ("--most", str(arguments.most), "--threads", str(arguments.threads))
    costs = json.dumps(cutter.costs.costs.as_json())
    sizes = list(map(int, arguments.sizes.split(",")))
    for what in [arguments.only] if arguments.only else ["time", "memory"]:
        results = []
        for size in sizes:
            command = [sys.executable, __file__, "--size", str(size), "--only", what, "--costs", costs, *given]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"  {size}: {results[-1]}", flush=True)
        print()
        (show_time if what == "time" else show_memory)(sizes, results)


def show_time(sizes: Sequence[int], results: Sequence[Mapping[str, Any]]) -> None:
    """The table of the seconds."""
    rows = [
        (
            f"{size:,}",
            f"{result['tokens']:,}",
            f"{result['seconds']:.2f}",
            f"{1000 * result['seconds'] / result['tokens']:.3f}",
        )
        for size, result in zip(sizes, results, strict=True)
    ]
    print_table(("effective batch", "tokens", "seconds", "ms a token"), rows)


def show_memory(sizes: Sequence[int], results: Sequence[Mapping[str, Any]]) -> None:
    """The table of the bytes, and of their ratios to those of the first size."""
    first = results[0]
    rows = [
        (
            f"{size:,}",
            f"{result['live_bytes'] / MIB:.1f}",
            f"{result['live_bytes'] / first['live_bytes']:.4f}",
            f"{result['resident_bytes'] / MIB:.0f}",
            f"{result['resident_bytes'] / first['resident_bytes']:.4f}",
        )
        for size, result in zip(sizes, results, strict=True)
    ]
    print_table(("effective batch", "live MiB", "/ first", "resident MiB", "/ first"), rows)


if __name__ == "__main__":
    main()
