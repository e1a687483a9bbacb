"""Commands that several ranks would all do, each over again, and into the same files."""

import os

from hf_accum.errors import UserError


def num_processes() -> int:
    """How many processes a launcher has started, of which this one is."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this one is rank 0, which speaks for all: also before ranks are known to torch."""
    return os.environ.get("RANK", "0") == "0"


def check_one_process(command: str) -> None:
    """Refuse several ranks, before anything is loaded or written.

    Raises:
        UserError: on each of them.
    """
    if (num_ranks := num_processes()) > 1:
        raise UserError(
            f"hf-accum {command} runs in one process, and was started in {num_ranks}: start it without "
            "`accelerate launch`"
        )
