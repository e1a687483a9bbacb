"""How a run that failed ends: one line to the user, the traceback where it can be found again, its status."""

import atexit
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_accum.cli.one_process import is_first_process, num_processes
from hf_accum.config.flags import as_flags, flag_names
from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.validation import without_secrets
from hf_accum.device.malloc import prepare_for_limits
from hf_accum.errors import NotFinite, OutOfMemory, Previewed, RankFailed, Stopped, UserError, first_line, printable
from hf_accum.files import DISK_IS_FULL

OF_COMMANDS = frozenset(["output", "figures", "require", "dtype", "licence", "max_new_tokens"])
"""Flags that commands have beside those of recipes."""
MISTAKE = 2
"""A process's status after a user's mistake."""
FAULT = 1
"""Its status after anything else."""


def tell(error: Exception, *, debug: bool = False, output_dir: str | None = None) -> int:
    """Print what a run failed of, as one message without secrets, of flags; returns the process's status.

    A user's mistake is told by its message alone. Of anything else the traceback is kept in a file beside the run's
    folder (in it are only a run's results, and at first it may not be there, or be that of an earlier run), which
    the message names. With `debug` each is printed with its traceback.
    """
    told = without_secrets("".join(traceback.format_exception(error)))
    if debug:
        print(told, file=sys.stderr, end="")
    status, message = _message(error)
    if status == FAULT and not debug:
        where = _keep(told, output_dir)
        kept = f"; its traceback is in {where}, and --debug shows it" if where else "; --debug shows its traceback"
        message += f" (nothing that is checked for: a fault of the program, a library or the machine{kept})"
    print(f"error: {printable(without_secrets(message), keep=chr(10))}", file=sys.stderr)
    return status


def _message(error: Exception) -> tuple[int, str]:
    if isinstance(error, UserError | RankFailed | OutOfMemory | NotFinite):
        return MISTAKE, as_flags(str(error), flag_names() | OF_COMMANDS)
    if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
        return MISTAKE, (
            f"{first_line(error)}: make room on the disk that is written to; the variable TMPDIR names the folder of "
            "temporary files"
        )
    if isinstance(error, BrokenPipeError):
        return MISTAKE, f"what reads the output has ended before it had all of it ({first_line(error)})"
    if isinstance(error, RuntimeError | MemoryError):
        from hf_accum.device.out_of_memory import Failure, classify

        if classify(error) is Failure.OUT_OF_MEMORY:
            # In a micro-batch it starts the window anew; the step of the optimizer cannot be taken back.
            return MISTAKE, (
                f"memory ran out outside of the micro-batches, as where weights are loaded or in an optimizer step "
                f"({first_line(error)}); in training a smaller --memory_budget, --micro_batch_size or --lora.rank "
                "leaves more for it"
            )
    return FAULT, first_line(error)


def _keep(told: str, output_dir: str | None) -> Path | None:
    """Write a traceback beside the run's folder, or else where temporary files are."""
    name = "hf-accum-traceback"
    folders = [Path(tempfile.gettempdir())]
    if output_dir:
        path = Path(output_dir).expanduser().absolute()
        folders, name = [path.parent, *folders], f"{path.name}-traceback"
    for folder in folders:
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=folder, prefix=f"{name}-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
            ) as file:  # each rank has its own, and none replaces that of an earlier run
                file.write(told)
            return Path(file.name)
        except (OSError, ValueError):
            continue
    return None


@contextmanager
def ending_past_threads() -> Iterator[None]:
    """Let a rank that ends by an error, after the work inside, end at once when the interpreter does.

    A thread of its own may wait for another rank, in C++. When that one ends too, the thread comes back into an
    interpreter that is being taken down, which aborts the process: with another status than that of the error.
    What others have registered to be done at exit is done before.
    """
    status = 0

    def end() -> None:
        if status and num_processes() > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    atexit.register(end)
    try:
        yield
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
        raise
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
        raise
    except BaseException:
        status = 1
        raise


EXIT_STOPPED = 75
"""Of a process that has ended early on request, and can go on: sysexits.h calls it EX_TEMPFAIL, "try again later"."""


_AFTER_THE_CAUSE_SECONDS = 2.0  # torchrun tells of the rank that ends first


@ending_past_threads()
def run(work: Callable[[], object], config: RecipeConfig | None = None, *, debug: bool = False) -> None:
    """Run a recipe's work; an error ends the process with one message: status 2 after a user's mistake, else 1.

    So it does on the ranks where the mistake did not show. With `debug`, or the config's, its traceback is shown. A
    run that was asked to stop ends with `EXIT_STOPPED`; one that was only to show its rows ends well.
    """
    prepare_for_limits()
    debug = debug or (config is not None and config.debug)
    try:
        work()
    except Previewed:
        return
    except Stopped:
        raise SystemExit(EXIT_STOPPED) from None  # the log has said why
    except Exception as error:
        status = tell(error, debug=debug, output_dir=None if config is None else config.output_dir)
        if isinstance(error, RankFailed):
            time.sleep(_AFTER_THE_CAUSE_SECONDS)
        raise SystemExit(status) from error
    except KeyboardInterrupt:
        if not debug:
            sys.excepthook = _tell_of_interrupt  # Python calls it, and ends by the signal, as shells expect
        raise


@contextmanager
def cleaning_up_at_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends this process as Ctrl-C does, past what takes away files that are half written.

    A rank of several that waits for another one would not hear of it: there it ends the process at once, as before.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        or num_processes() > 1
    ):
        yield
        return

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        with suppress(OSError):
            os.write(2, b"SIGTERM: ended at once\n")  # past Python's files, in which it may have come
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tell_of_interrupt(*_: object) -> None:
    if is_first_process():
        print("interrupted: ended at once; a run goes on from what it has saved before", file=sys.stderr)
