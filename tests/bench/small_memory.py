"""The clinical recipe where memory is really scarce: under RLIMIT_DATA the CPU's allocator fails as a GPU's does.

For each limit: the recipe with `--micro_batch_size auto` on its own data, 20 steps at effective batch 64; the
largest fixed micro-batch with which it gets through texts that are all of the longest length, by bisection, without
one window having to be replayed (cut as large as allowed, not as is fastest, which may be smaller); and a capacity
that is deliberately wrong, which has to give the losses of an unlimited run.

    python tests/bench/small_memory.py --limits 2,3,4
"""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import argument_parser, print_header, print_table

GIB = 2**30
RECIPE = ("-m", "recipes.clinical_classification")
AS_LARGE_AS_ALLOWED = """
from dataclasses import replace
import hf_accum.run.training as training
cutter_of = training.cutter_of
training.cutter_of = lambda *of, **how: replace(cutter_of(*of, **how), costs=None)
from recipes.clinical_classification import main
main()
"""
ROOT = Path(__file__).parent.parent.parent


def recipe(
    folder: Path, limit_gib: float | None, *flags: str, program: Sequence[str] = RECIPE
) -> dict[str, Any] | None:
    """Run the recipe under a limit; its steps and its tuning, or None if it did not end well."""

    def limited() -> None:
        if limit_gib is not None:
            most = round(limit_gib * GIB)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    command = [sys.executable, *program, f"--output_dir={folder}", *flags]
    done = subprocess.run(command, preexec_fn=limited, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tuning = json.loads((folder / "tuning.json").read_text())
    return {"steps": steps, "tuning": tuning, "replays": sum(step["num_oom_replays"] for step in steps)}


def largest(fits: Callable[[int], bool], at_most: int) -> int:
    """By bisection; 0 if not even 1 fits."""
    good, bad = 0, at_most + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def main() -> None:
    """All limits, one after the other."""
    parser = argument_parser(__doc__)
    parser.add_argument("--limits", default="2,3,4", help="GiB, with commas")
    parser.add_argument("--max_length", type=int, default=128)
    arguments = parser.parse_args()
    print_header(arguments.threads)
    shared = ("--effective_batch_size=64", f"--max_length={arguments.max_length}", "--eval_fraction=0.02")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        words = "seizure hypotonia ataxia cataract murmur ptosis scoliosis anemia " * (arguments.max_length // 4)
        long = [json.dumps({"text": f"{words} {i}", "label": "ab"[i % 2]}) for i in range(400)]
        (scratch / "long.jsonl").write_text("\n".join(long))
        for limit in map(float, arguments.limits.split(",")):
            print(f"{limit:g} GiB: auto", flush=True)
            auto = recipe(scratch / f"auto-{limit:g}", limit, *shared, "--max_steps=20")

            def fits(size: int, limit: float = limit) -> bool:
                print(f"{limit:g} GiB: {size}", flush=True)
                texts = (f"--dataset={scratch / 'long.jsonl'}", f"--micro_batch_size={size}", "--max_steps=3")
                flags = (*shared, *texts, "--shuffle_block_size=1")
                folder = scratch / f"fixed-{limit:g}-{size}"
                run = recipe(folder, limit, *flags, program=("-c", AS_LARGE_AS_ALLOWED))
                return run is not None and run["replays"] == 0

            true = largest(fits, 64)
            found = 0 if auto is None else auto["tuning"]["largest_micro_batch"][str(arguments.max_length)]
            replays = "did not end" if auto is None else auto["replays"]
            probes = 0 if auto is None else len(auto["tuning"]["probes"])
            seconds = 0.0 if auto is None else auto["tuning"]["seconds"]
            share = f"{found / true:.0%}" if true else "-"
            rows.append([f"{limit:g} GiB", *map(str, (found, true, share, replays, probes)), f"{seconds:.1f}"])
        wrong_limit = float(arguments.limits.split(",")[0])
        plain = (*shared, "--dropout=0", "--max_steps=6", "--log_every=1", "--num_epochs=1")
        texts = (f"--dataset={scratch / 'long.jsonl'}",)
        print("wrong capacity", flush=True)
        free = recipe(scratch / "free", None, *plain, *texts, "--micro_batch_size=7")
        wrong = recipe(scratch / "wrong", wrong_limit * 0.6, *plain, *texts, "--micro_batch_size=64")
    header = ["limit", "auto", "brute force", "share", "replays in 20 steps", "probes", "seconds of tuning"]
    print_table(header, rows)
    if free is None or wrong is None:
        print("a run of the comparison with a wrong capacity did not end")
        return
    apart = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(wrong["steps"], free["steps"], strict=True))
    print(
        f"\nmicro-batch 64 under {wrong_limit * 0.6:g} GiB, dropout 0, 6 steps of 64 texts: {wrong['replays']} "
        f"replays, losses within {apart:.1e} of the unlimited run's"
    )


if __name__ == "__main__":
    main()
