"""Do the ranks of a window end together? Simulated for many of them, and measured on two real processes.

Simulated: windows of `--per_rank` real synopses a rank, drawn from all of them, each rank's share cut by this
project's costs (learned here, MiniLM with the recipe's LoRA). The predicted seconds of the slowest rank, divided by
the mean of all: as the examples came (rank r has every R-th of a random order), and as
`hf_accum.accumulation.load_balancing` moves them.

Measured: the recipe's loop on two processes, as `accelerate launch` starts them, with and without balance in turns:
how long the ranks wait for each other before the gradients are summed, as a share of the time of a window.

    python tests/bench/ranks.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
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

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.load_balancing import assign
from hf_accum.accumulation.splitting import Cutter, cut
from hf_accum.accumulation.time_model import Costs, Speed
from hf_accum.config.lora import LoraConfig
from hf_accum.config.optimization import OptimizationFlags

WINDOW = 64
ROOT = Path(__file__).parent.parent.parent


def seconds_of(examples: Sequence[Example], most: int, costs: Costs) -> float:
    """What a rank's share of a window takes, as predicted."""
    return sum(float(costs.seconds(len(piece), piece[0].length)) for piece in cut(examples, most, costs))


def slowest_to_mean(shares: Sequence[Sequence[Example]], most: int, costs: Costs) -> float:
    """How much longer than necessary a window takes."""
    seconds = [seconds_of(share, most, costs) for share in shares]
    return max(seconds) / (sum(seconds) / len(seconds))


def simulate(examples: Sequence[Example], cutter: Cutter, num_ranks: int, per_rank: int, most: int) -> list[str]:
    """The row of the table for so many ranks."""
    assert cutter.costs is not None
    costs = cutter.costs.costs
    random = np.random.default_rng(0)
    before, after, moved, seconds = [], [], [], []
    for window in range(max(3, 256 // num_ranks)):
        drawn = [examples[i] for i in random.integers(0, len(examples), num_ranks * per_rank)]
        named = [Example(f"{window}:{i}", e.length, e.weight, {}) for i, e in enumerate(drawn)]
        shares = [named[rank::num_ranks] for rank in range(num_ranks)]
        started = time.perf_counter()
        owners = assign([[e.length for e in share] for share in shares], [costs] * num_ranks)
        seconds.append(time.perf_counter() - started)
        evened: list[list[Example]] = [[] for _ in range(num_ranks)]
        for share, of_rank in zip(shares, owners, strict=True):
            for example, owner in zip(share, of_rank, strict=True):
                evened[owner].append(example)
        before.append(slowest_to_mean(shares, most, costs))
        after.append(slowest_to_mean(evened, most, costs))
        stayed = sum(owner == rank for rank, of_rank in enumerate(owners) for owner in of_rank)
        moved.append(1 - stayed / len(named))
    return [
        str(num_ranks),
        str(per_rank),
        f"{np.mean(before):.3f} ({max(before):.3f})",
        f"{np.mean(after):.3f} ({max(after):.3f})",
        f"{np.mean(moved):.0%}",
        f"{1000 * np.median(seconds):.0f}",
    ]


def run_as_rank(output: Path, num_windows: int, num_rounds: int, most: int) -> None:
    """One of the real processes: windows with and without balance, in turns."""
    import torch
    import torch.distributed as dist

    from hf_accum.accumulation import accumulate as accumulation
    from hf_accum.models.optimizer import build_optimizer
    from hf_accum.recipe import Pipeline, WindowStream, ranks_of, start_accelerator

    accelerator = start_accelerator()
    ranks = ranks_of(accelerator)
    data = load_recipe_data()
    task = minilm_task(data.labels, data.text_column, max_length=512)
    rows = evenly_spaced(data.train, num_windows * WINDOW)
    model: Any = load_minilm(task, LoraConfig()).train()
    optimizer = build_optimizer(model, OptimizationFlags(learning_rate=3e-4, weight_decay=0.01))
    cpu = torch.device("cpu")
    examples = encoded(task, rows[: 2 * WINDOW])
    cutter = learned_cutter(task, model, [examples[:WINDOW], examples[WINDOW:]], most)
    assert cutter.costs is not None
    speed = Speed("cpu", cutter.costs.costs)  # what `balanced` takes the mean of over the ranks
    model.zero_grad()
    waited = 0.0
    sum_gradients = accumulation._sum_gradients

    def after_waiting(parameters: Any) -> None:
        nonlocal waited
        started = time.perf_counter()
        dist.barrier()
        waited += time.perf_counter() - started
        sum_gradients(parameters)

    results = []
    for round_ in range(2 * num_rounds):
        is_balanced = round_ % 2 == 1
        stream = WindowStream(
            source_of(rows),
            task.prepare,
            task.encode,
            ranks=ranks,
            effective_batch_size=WINDOW,
            seed=round_ // 2,
            balance=(lambda step: speed) if is_balanced else None,
        )
        waited = 0.0
        dist.barrier()
        started = time.perf_counter()
        with patch.object(accumulation, "_sum_gradients", after_waiting):
            windows = Pipeline(stream, cutter, task.collate, cpu)
            for _ in train(windows, cutter, accelerator, task, model, optimizer):
                pass
        seconds = time.perf_counter() - started
        results += ranks.gather_objects({"balanced": is_balanced, "seconds": seconds, "waited": waited})
    if accelerator.is_main_process:
        output.write_text(json.dumps(results))
    accelerator.end_training()


def measure(arguments: argparse.Namespace) -> list[list[str]]:
    """Start the real processes, and make the table of what they measured."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        numbers = [f"--{name}={getattr(arguments, name)}" for name in ("num_windows", "num_rounds", "most")]
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
            *(__file__, "--as_rank", str(output), *numbers),
        ]
        subprocess.run(command, cwd=ROOT, check=True)
        results = json.loads(output.read_text())
    rows = []
    for is_balanced, name in ((False, "as they came"), (True, "evened out")):
        mine = [result for result in results if result["balanced"] is is_balanced]
        shares = [result["waited"] / result["seconds"] for result in mine]
        seconds = [result["seconds"] for result in mine]
        rows.append(
            [
                name,
                f"{np.mean(shares):.1%}",
                f"{max(shares):.1%}",
                f"{1000 * np.mean([result['waited'] for result in mine]) / arguments.num_windows:.0f}",
                f"{np.median(seconds) / arguments.num_windows:.2f}",
            ]
        )
    return rows


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--most", type=int, default=64, help="examples that fit (default: %(default)s)")
    parser.add_argument("--num_windows", type=int, default=8, help="of 64, on two processes (default: %(default)s)")
    parser.add_argument("--num_rounds", type=int, default=3, help="with and without balance (default: %(default)s)")
    parser.add_argument("--as_rank", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    if arguments.as_rank is not None:
        run_as_rank(arguments.as_rank, arguments.num_windows, arguments.num_rounds, arguments.most)
        return
    print_header(arguments.threads)
    data = load_recipe_data()
    task = minilm_task(data.labels, data.text_column, max_length=512)
    examples = encoded(task, data.train)
    windows = [encoded(task, evenly_spaced(data.train, 2 * WINDOW)[half::2]) for half in (0, 1)]
    cutter = learned_cutter(task, load_minilm(task, LoraConfig()).train(), windows, arguments.most)
    assert cutter.costs is not None
    print(f"costs: {cutter.costs.costs}\n")
    print_table(
        ("ranks", "examples a rank", "as they came (worst)", "evened out (worst)", "moved", "ms to assign"),
        [
            simulate(examples, cutter, num_ranks, per_rank, arguments.most)
            for num_ranks in (2, 8, 64, 512)
            for per_rank in (8, 64)
        ],
    )
    print_table(("two processes", "mean share waited", "the most", "ms a window", "s a window"), measure(arguments))


if __name__ == "__main__":
    main()
