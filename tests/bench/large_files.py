"""What a large file costs before the first step: a million rows of csv.gz, and a hundredth of them.

Resident memory and seconds of the parts, each in a process of its own: opening the file, the survey (which finds
labels and number of rows), the stream up to its first window and to its end, and the recipe with `--max_steps 2` and
a tiny BERT up to its first step: of that also the memory as time goes on.

    python tests/bench/large_files.py
"""

import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from common import argument_parser, print_header, print_table

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("eye", "heart", "muscle")


def make_file(path: Path, num_rows: int) -> None:
    """Texts of 5 to 40 words with a comma, of which one says the class."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(997)]
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8", newline="") as file:
        file.write("text,label\n")
        for _ in range(num_rows):
            label = draw.choice(CLASSES)
            file.write(f'"{" ".join(draw.choices(words, k=draw.randint(5, 40)))}, {label}",{label}\n')


def part(name: str, file: str) -> dict[str, Any]:
    """One part, in this process: MiB resident before it, at its peak; seconds."""
    from hf_accum.accumulation.example import Example
    from hf_accum.config.recipe import RecipeConfig
    from hf_accum.data.source import open_source
    from hf_accum.data.split import open_split
    from hf_accum.data.stream import WindowStream
    from hf_accum.data.survey import Observed
    from hf_accum.distributed.ranks import OneRank

    open_source(file, "train")  # so that imports are not measured
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    if name == "open":
        open_source(file, "train", columns=("text", "label"))
    elif name == "survey":
        data = open_split(file, ["text", "label"], RecipeConfig(), group_column="text")
        data.surveyed(
            lambda row: Observed((row["label"],), (row["text"], row["label"]), row["text"]), OneRank(), "error"
        )
    else:
        stream = WindowStream(
            open_source(file, "train"),
            lambda row: row["text"],
            lambda rows: [Example(i, len(text.split()), 1.0, {}, 0) for i, text in rows],
            ranks=OneRank(),
            effective_batch_size=32,
            seed=0,
        )
        for number, _ in enumerate(stream, 1):
            if name == "first window" and number == 1:
                break
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"before": before / 2**20, "peak": peak / 2**20, "seconds": seconds}


def recipe(file: Path, folder: Path, *flags: str) -> dict[str, Any]:
    """The recipe up to its first step: seconds of the whole process, its memory at the quarters, its peak."""
    command = [sys.executable, "-m", "recipes.clinical_classification", f"--dataset={file}", *flags]
    command += [f"--output_dir={folder / 'run'}", "--max_steps=2", "--micro_batch_size=8", "--max_length=20"]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seen: list[int] = []
    first_step: float | None = None
    metrics = folder / "run" / "metrics.jsonl"
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            seen.append(watched.memory_info().rss)
        except psutil.Error:
            break
        if first_step is None and metrics.exists() and metrics.stat().st_size:
            first_step = time.perf_counter() - started
            process.kill()  # the evaluation of the held-out part is none of it
        time.sleep(0.05)
    assert first_step is not None, process.stderr.read() if process.stderr else ""
    process.wait()
    quarters = [seen[(len(seen) - 1) * quarter // 4] / 2**20 for quarter in (1, 2, 3)]
    return {"before": 0.0, "peak": max(seen) / 2**20, "seconds": first_step, "over time": quarters}


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num_rows", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--part", nargs=2, help="of one process: which, and of which file")
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(part(*arguments.part)))
        return
    print_header(arguments.threads)
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from tiny import save_base

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save_base(folder / "base", "bert")
        for num_rows in (arguments.num_rows // 100, arguments.num_rows):
            file = folder / f"rows-{num_rows}.csv.gz"
            make_file(file, num_rows)
            size = f"{file.stat().st_size / 2**20:.1f}"
            for name in ("open", "survey", "first window", "all windows"):
                command = [sys.executable, __file__, "--part", name, str(file)]
                found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                rows.append((name, num_rows, size, found))
            labels = f"--labels={','.join(CLASSES)}"
            for name, flags in (
                ("recipe", ()),
                ("recipe, labels given, no pass before", (labels, "--num_epochs=null")),
            ):
                os.makedirs(folder / name / str(num_rows))
                found = recipe(file, folder / name / str(num_rows), f"--model={model}", *flags)
                rows.append((name, num_rows, size, found))
    header = ("part", "rows", "file MiB", "MiB before", "peak MiB", "seconds", "MiB at 1/4, 1/2, 3/4 of them")
    print_table(
        header,
        [
            (
                name,
                f"{n:,}",
                size,
                f"{f['before']:.1f}" if f["before"] else "",
                f"{f['peak']:.1f}",
                f"{f['seconds']:.1f}",
                ", ".join(f"{memory:.0f}" for memory in f.get("over time", [])),
            )
            for name, n, size, f in rows
        ],
    )


if __name__ == "__main__":
    main()
