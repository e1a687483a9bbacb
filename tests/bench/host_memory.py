"""Whether host memory stays flat as the data grows: peak resident bytes for few and for many streamed rows.

JSON-lines files are written into a temporary folder: each row has the features of a real clinical
synopsis, some of them left out, in another order. Then each of two passes over each file runs in a
process of its own, whose peak (`ru_maxrss`) is read before the pass, when all it needs is loaded, and at
its end:

- survey: the recipe's `open_data`, which reads every row once for labels, counts and bad rows;
- stream: one epoch of a `WindowStream` with MiniLM's tokenizer; every window is cut and padded to
  tensors, but there is no model.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common import argument_parser, load_recipe_data, minilm_task, print_header, print_table, use_threads

from recipes.clinical_classification import ClinicalClassificationConfig

LABELS = ("dominant", "other", "recessive", "x-linked")


@dataclass(frozen=True)
class Measured:
    """One pass, in a process of its own."""

    num_rows: int
    bytes_before: int
    peak_bytes: int
    seconds: float


def write_rows(file: Path, num_rows: int) -> None:
    """Write so many rows, drawn from real ones."""
    data = load_recipe_data()
    real = [*data.train, *data.held_out]
    texts, classes = data.texts(real), data.classes(real)
    assert data.labels.names == LABELS
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as lines:
        for _ in range(num_rows):
            which = rng.randrange(len(real))
            features = texts[which].split("; ")
            kept = rng.sample(features, rng.randint(-(-len(features) * 3 // 4), len(features)))
            lines.write(json.dumps({"text": "; ".join(kept), "label": LABELS[classes[which]]}) + "\n")


def survey_pass(config: ClinicalClassificationConfig) -> Callable[[], int]:
    """The recipe's pass before training; what is returned runs it, and returns the number of rows."""
    from hf_accum.distributed.ranks import OneRank
    from recipes.clinical_classification import open_data

    def run() -> int:
        data = open_data(config, OneRank())
        return (data.num_train or 0) + (data.num_held_out or 0)

    return run


def stream_pass(config: ClinicalClassificationConfig) -> Callable[[], int]:
    """One epoch of windows as tensors; what is returned runs it, and returns the number of rows."""
    from hf_accum import WindowExecution
    from hf_accum.distributed.ranks import OneRank
    from hf_accum.recipe import WindowStream, open_source
    from hf_accum.tasks.labels import LabelColumn

    assert config.dataset is not None
    task = minilm_task(
        LabelColumn("label", "single_label_classification", LABELS), config.text_column, config.max_length
    )
    windows = WindowStream(
        open_source(config.dataset, "train"),
        task.prepare,
        task.encode,
        ranks=OneRank(),
        effective_batch_size=config.effective_batch_size,
        seed=config.seed,
        shuffle_block_size=config.shuffle_block_size,
    )

    def run() -> int:
        for window in windows:
            for micro_batch in WindowExecution(window, task.collate).micro_batches(8):
                micro_batch.is_through = True  # nothing is computed
        return windows.counts.num_examples

    return run


PASSES = {"survey": survey_pass, "stream": stream_pass}


def measure_here(name: str, file: Path, num_rows: int) -> Measured:
    """Run a pass over a file in this process."""
    config = ClinicalClassificationConfig(
        dataset=str(file), effective_batch_size=64, shuffle_block_size=1_000, label_column="label"
    )
    run = PASSES[name](config)
    bytes_before = peak_bytes()
    started = time.perf_counter()
    num_seen = run()
    seconds = time.perf_counter() - started
    if num_seen != num_rows:
        raise RuntimeError(f"{name}: {num_seen} rows were seen, there are {num_rows}")
    return Measured(num_rows, bytes_before, peak_bytes(), seconds)


def measure_apart(name: str, file: Path, num_rows: int, num_threads: int) -> Measured:
    """Run a pass over a file in a process of its own."""
    measured = Measured(**json.loads(run_apart(name, file, num_rows, num_threads).splitlines()[-1]))
    if measured.bytes_before <= peak_bytes():
        # Linux starts a process's ru_maxrss at the size of the one that forked it.
        raise RuntimeError("the measuring process is smaller than this one, whose peak it inherits")
    return measured


def run_apart(work: str, file: Path, num_rows: int, num_threads: int) -> str:
    """Run this script for one piece of work, and return what it printed."""
    command = [
        sys.executable,
        __file__,
        "--threads",
        str(num_threads),
        "--work",
        work,
        str(file),
        str(num_rows),
    ]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def peak_bytes() -> int:
    """The most memory resident so far in this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def compare(row_counts: Sequence[int], num_threads: int) -> None:
    """Measure both passes for all sizes, and print the table."""
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for num_rows in row_counts:
            run_apart("write", Path(folder) / f"{num_rows}.jsonl", num_rows, num_threads)
        for name in PASSES:
            first: Measured | None = None
            for num_rows in row_counts:
                file = Path(folder) / f"{num_rows}.jsonl"
                measured = measure_apart(name, file, num_rows, num_threads)
                first = first or measured
                table.append(
                    (
                        name,
                        f"{num_rows:,}",
                        f"{file.stat().st_size / 2**20:.1f}",
                        f"{measured.bytes_before / 2**20:.1f}",
                        f"{measured.peak_bytes / 2**20:.1f}",
                        f"{measured.peak_bytes / first.peak_bytes:.4f}",
                        f"{measured.seconds:.1f}",
                    )
                )
    columns = (
        "pass",
        "rows",
        "file MiB",
        "peak MiB before",
        "peak MiB",
        "peak / that of the first",
        "seconds",
    )
    print_table(columns, table)


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--num_rows", type=int, nargs="+", default=[1_000, 100_000], help="sizes (default: %(default)s)"
    )
    parser.add_argument("--work", nargs=3, metavar=("NAME", "FILE", "ROWS"), help="what the processes are told")
    arguments = parser.parse_args()
    if arguments.work is None:
        print_header(arguments.threads)
        compare(arguments.num_rows, arguments.threads)
        return
    use_threads(arguments.threads)
    name, file, num_rows = arguments.work[0], Path(arguments.work[1]), int(arguments.work[2])
    if name == "write":
        write_rows(file, num_rows)
    else:
        print(json.dumps(asdict(measure_here(name, file, num_rows))))


if __name__ == "__main__":
    main()
