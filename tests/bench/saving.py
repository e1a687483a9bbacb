"""What checkpoints cost: rounds of 20 steps with a checkpoint saved in each, beside rounds without.

MiniLM with the recipe's LoRA on real clinical synopses, this project's loop, in turns (A B, then B A). A checkpoint
is begun at the start of its round: the copy to the host is part of the first step, and the writing, by a thread of
its own, goes on beside the steps behind it. The table has wall clock and processor time; the ratios are medians over
the pairs of rounds that ran beside each other.

    python tests/bench/saving.py --threads 2
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from common import (
    argument_parser,
    evenly_spaced,
    load_minilm,
    load_recipe_data,
    minilm_task,
    print_header,
    use_threads,
)
from overhead import by_hf_accum, in_turns, report, start_training

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.nonfinite import NonFiniteCheck
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.lora import LoraConfig
from hf_accum.run.checkpoint import BestCheckpoint, Checkpoints
from hf_accum.run.resume import RunState


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num_rounds", type=int, default=8, help="of each (default: %(default)s)")
    parser.add_argument("--num_steps", type=int, default=20, help="between two checkpoints (default: %(default)s)")
    parser.add_argument("--effective_batch_size", type=int, default=8, help="default: %(default)s")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    data = load_recipe_data()
    task = minilm_task(data.labels, data.text_column, max_length=512)
    training = start_training(
        load_minilm(task, LoraConfig()),
        task,
        effective_batch_size=arguments.effective_batch_size,
        micro_batch_size=arguments.effective_batch_size,
    )
    rows = evenly_spaced(data.train, arguments.num_steps * arguments.effective_batch_size)
    cutter = Cutter(WorkingCapacity(Capacity(arguments.effective_batch_size)))
    assert task.tokenizer is not None
    step = 0
    begun: list[float] = []

    with tempfile.TemporaryDirectory() as folder:
        state = RunState(
            {},
            training.ranks,
            model=training.model,
            optimizer=training.optimizer,
            scheduler=training.scheduler,
            scaler=None,
            windows=training.windows(rows),
            cutter=cutter,
            nonfinite=NonFiniteCheck(training.ranks, Path(folder), print, max_skips=0),
            best=BestCheckpoint(None),
            device="cpu",
            limit_bytes=0,
        )
        checkpoints = Checkpoints(Path(folder), training.model, task.tokenizer, training.ranks, 2, print)

        def saving() -> None:
            nonlocal step
            step += 1
            started = time.perf_counter()
            state.save(step, checkpoints)
            begun.append(time.perf_counter() - started)
            by_hf_accum(training, rows)
            assert checkpoints.wait()

        def plainly() -> None:
            by_hf_accum(training, rows)

        works: Any = (saving, plainly)
        for work in works:
            work()  # warm up
        timings = in_turns(works, arguments.num_rounds)
        num_bytes = sum(path.stat().st_size for path in max(Path(folder, "checkpoints").iterdir()).rglob("*"))
    print(
        f"{arguments.num_steps} steps of {arguments.effective_batch_size} texts in a round; a checkpoint has ", end=""
    )
    print(f"{num_bytes / 2**20:.1f} MiB and keeps the loop for {1000 * sorted(begun)[len(begun) // 2]:.0f} ms\n")
    report(*timings, num_windows=arguments.num_steps, names=("saving", "not saving"))


if __name__ == "__main__":
    main()
