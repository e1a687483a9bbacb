"""How long a run takes to go on: from its start to its first step, at step 10 and at step 10,000 of a streamed set.

The recipe with a tiny BERT of random weights on texts that are made up here (JSONL files), by `accelerate launch`.
One run is ended behind each of the steps; then the same command goes on, in turns, and is ended behind its first one.

    python tests/bench/resume_start.py
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import argument_parser, print_header, print_table

ROOT = Path(__file__).resolve().parents[2]
FAULTY = ROOT / "tests" / "recipes" / "faulty_recipe.py"
CLASSES = ("eye", "heart", "muscle")


def make_texts(folder: Path, num_rows: int, num_files: int) -> None:
    """Texts of 5 to 40 words, a word of which says the class."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(40)]
    for index in range(num_files):
        with (folder / f"train-{index:03}.jsonl").open("w") as file:
            for _ in range(num_rows // num_files):
                label = draw.choice(CLASSES)
                text = " ".join([*draw.choices(words, k=draw.randint(5, 40)), label])
                file.write(json.dumps({"text": text, "label": label}) + "\n")


def run(flags: list[str], end_in: int, seconds_more: float = 0.0) -> float:
    """Seconds until the recipe has ended itself in its window of this number (of this start).

    Each forward takes some seconds more.
    """
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    started = time.perf_counter()
    subprocess.run(
        [*launch, str(FAULTY), "SIGKILL", "0", str(end_in), *flags],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
            "FAULTY_SECONDS": str(seconds_more),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num_rounds", type=int, default=7, help="of each (default: %(default)s)")
    parser.add_argument("--late_step", type=int, default=10_000, help="default: %(default)s")
    arguments = parser.parse_args()
    print_header(arguments.threads)
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from tiny import save_base

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save_base(folder / "base", "bert")
        (folder / "texts").mkdir()
        make_texts(folder / "texts", num_rows=60_000, num_files=12)
        steps = (10, arguments.late_step)
        seconds: dict[int, list[float]] = {step: [] for step in steps}

        def flags(output: Path, step: int) -> list[str]:
            size = "--max_length=20 --micro_batch_size=4 --effective_batch_size=4 --max_steps=1000000"
            paths = [f"--model={model}", f"--dataset={folder / 'texts'}", f"--output_dir={output}"]
            how = f"--labels={','.join(CLASSES)} --num_epochs=null --log_every=100 --save_every={step}"
            return [*paths, *size.split(), *how.split()]

        for step in steps:
            # Behind the next steps, so that the checkpoint is there, which is written meanwhile.
            run(flags(folder / f"at-{step}", step), step + min(step - 1, 400), 0.1 if step < 100 else 0.0)
            saved = sorted(path.name for path in (folder / f"at-{step}" / "checkpoints").iterdir())
            assert saved == [f"step-{step:08}"], saved
        for number in range(arguments.num_rounds):
            for step in steps if number % 2 == 0 else reversed(steps):
                again = folder / "again"
                shutil.copytree(folder / f"at-{step}", again)
                seconds[step].append(run(flags(again, step), 2))
                shutil.rmtree(again)
        rows = [
            (f"{step:,}", f"{statistics.median(of_step):.2f}", f"{min(of_step):.2f}", f"{max(of_step):.2f}")
            for step, of_step in seconds.items()
        ]
        print_table(("resumed behind step", "median s", "least s", "greatest s"), rows)
        ratios = [late / early for early, late in zip(*seconds.values(), strict=True)]
        print(f"late / early: median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
