"""Run by `accelerate launch`: contrastive gradients of windows spread over ranks, against one unsplit batch.

Prints one JSON line from rank 0: for each case the largest relative difference on any rank, and the replays of each.
Cases: windows spread in three ways, at every micro-batch size; and memory that runs out on one rank, or on all, at
operations through the whole of a window.
"""

import faulthandler
import json
from typing import Any

from failing import Failing
from gradients_over_ranks import spread
from pair_cases import make_encoder, make_pairs, run_window, unsplit
from window_cases import largest_relative_difference

from hf_accum.recipe import ranks_of, start_accelerator

HUNG = 60  # seconds in one window
EVERY = 167


class FailingAlone(Failing):
    """Not at what talks to the other ranks: that allocates nothing here."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


def main() -> None:
    accelerator = start_accelerator()
    ranks = ranks_of(accelerator)
    cases: dict[str, tuple[float, list[int]]] = {}

    def one(name: str, how: str, number: int, size: int, failing: Failing | None = None) -> None:
        faulthandler.dump_traceback_later(HUNG, exit=True)
        model = make_encoder()
        pairs = make_pairs(number, seed=number)
        reference, _ = unsplit(model, pairs)
        mine = spread(how, pairs, ranks.count)[ranks.index]
        window = run_window(accelerator, model, mine, pairs, ranks, size, failing=failing)
        outcomes = ranks.gather_objects((largest_relative_difference(model, reference), window.num_oom_replays))
        cases[name] = max(difference for difference, _ in outcomes), [replays for _, replays in outcomes]

    for number in (2, 7, 12):
        for how in ("evenly", "all on the last rank", "at random"):
            for size in range(1, 2 * number, 5):
                one(f"{number} pairs {how}, micro-batches of {size}", how, number, size)
    counting = FailingAlone()
    one("counted", "at random", 7, 4, counting)
    numbers = ranks.gather_objects(counting.num_operations)
    for at in range(1, min(numbers), EVERY):
        for rank in range(ranks.count + 1):
            fails = rank in (ranks.index, ranks.count)  # the last: on all of them
            name = f"fails on {'all' if rank == ranks.count else rank} at {at}"
            one(name, "at random", 7, 4, FailingAlone(at if fails else None))
    if accelerator.is_main_process:
        print(json.dumps({"num_ranks": ranks.count, "cases": cases}))
    accelerator.end_training()


if __name__ == "__main__":
    main()
