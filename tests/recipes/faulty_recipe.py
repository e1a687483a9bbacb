"""Run by `accelerate launch`: a recipe, in which something happens on one rank in a forward.

The recipe of text classification, or that which FAULTY_RECIPE names.

Arguments: what happens, the rank, the window in which it does (from 1), and the recipe's flags: `nothing`; `raise`,
an error; `sleep`, for a minute; or the name of a signal, which the process sends itself. A line `training` from rank
0 says that it has begun. Each forward takes a while longer, so that others have time to act. With
FAULTY_EVALUATION_SECONDS so does each batch of an evaluation, of which a line `evaluating` tells.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hf_accum.accumulation.accumulate
from hf_accum.evaluation import run_over

RECIPE = os.environ.get("FAULTY_RECIPE", "clinical_classification")
SECONDS = float(os.environ.get("FAULTY_SECONDS", "0.05"))
EVALUATION_SECONDS = float(os.environ.get("FAULTY_EVALUATION_SECONDS", "0"))


def patch(what: str, rank: int, at_window: int) -> None:
    accumulate = hf_accum.accumulation.accumulate.accumulate
    num_windows = 0

    @contextmanager
    def with_a_fault(accelerator: Any, model: Any, micro_batch: Any) -> Iterator[None]:
        nonlocal num_windows
        with accumulate(accelerator, model, micro_batch):
            is_first_pass = micro_batch.is_no_grad_pass or micro_batch.tell is None
            if micro_batch.index == 0 and is_first_pass:
                num_windows += 1
                if num_windows == 2 and accelerator.process_index == 0:
                    print("training", flush=True)
                if num_windows == at_window and accelerator.process_index == rank:
                    if what == "raise":
                        raise ZeroDivisionError("made up in the forward")
                    if what == "sleep":
                        time.sleep(60)
                    elif what != "nothing":
                        os.kill(os.getpid(), getattr(signal, what))
            time.sleep(SECONDS)
            yield

    hf_accum.accumulation.accumulate.accumulate = with_a_fault


def slow_evaluation() -> None:
    in_pieces = run_over.in_pieces

    def slowly(*arguments: Any) -> Iterator[Any]:
        if os.environ.get("RANK", "0") == "0":
            print("evaluating", flush=True)
        for piece in in_pieces(*arguments):
            time.sleep(EVALUATION_SECONDS)
            yield piece

    run_over.in_pieces = slowly


if __name__ == "__main__":
    if EVALUATION_SECONDS:
        slow_evaluation()
    what, rank, at_window, *flags = sys.argv[1:]
    patch(what, int(rank), int(at_window))
    importlib.import_module(f"recipes.{RECIPE}").main(flags)
