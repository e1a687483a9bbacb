"""`hf-accum serve`: what a run that is through predicts of rows, over HTTP."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import run
from hf_accum.cli.one_process import check_one_process
from hf_accum.cli.recipes import recipe_of
from hf_accum.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

    from hf_accum.cli.serving.app import Limits
    from hf_accum.config.recipe import RecipeConfig

_SERVE = """A small HTTP server of what a run that is through predicts: POST {"rows": [...]} to /predict; /health and
/metrics (of Prometheus) tell of it. Rows of several requests are computed together, by similar length, as many as fit
into memory. It has no login, and no encryption: it answers this machine only, unless --host says otherwise. Flags of
the run's recipe say how rows are read (--text_column, --micro_batch_size 8, ...)."""


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """The command's own flags, and its work: `work(parsed, flags)`, of which the recipe reads the flags."""
    parser = commands.add_parser(
        "serve", help="what a run predicts, over HTTP", description=_SERVE, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, its --output_dir")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="the port (8000); 0: any that is free")
    parser.add_argument("--max_request_bytes", type=int, default=8 * 2**20, help="of one request (8 MiB)")
    parser.add_argument("--max_rows", type=int, default=256, help="of one request, or computed together (256)")
    parser.add_argument(
        "--max_waiting", type=int, default=256, help="requests that are read, wait or are computed at once (256)"
    )
    parser.add_argument("--timeout_seconds", type=float, default=60, help="from a request's begin to its answer (60)")
    parser.add_argument("--max_new_tokens", type=int, help="of a language model: the most tokens of a text (256)")
    parser.add_argument("--recipe", help="the recipe, where the run does not say by which it was made")
    parser.set_defaults(work=_serve)


def _serve(parsed: argparse.Namespace, flags: list[str]) -> None:
    check_one_process("serve")
    names = ("max_request_bytes", "max_rows", "max_waiting", "timeout_seconds", "max_new_tokens")
    given = {name: value for name in names if (value := getattr(parsed, name)) is not None}
    if not 0 <= parsed.port < 2**16:  # which would be taken for another one
        raise UserError(f"--port {parsed.port}: has to be from 0 (any that is free) to {2**16 - 1}")
    for name, value in given.items():
        if not 0 < value < 2**31:
            raise UserError(f"--{name} {value}: has to be above 0, and below {2**31:,}")
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401

        from hf_accum.cli.serving.app import Limits
    except ImportError as error:
        raise UserError(f"serve needs fastapi and uvicorn: pip install 'hf-accum[serve]' ({error})") from error

    how = {name: given.pop(name) for name in ("max_new_tokens",) if name in given}
    folder = Path(parsed.run).expanduser().resolve()
    module, config = recipe_of(folder, parsed.recipe, flags, parsed.own)
    run(lambda: serve_run(module, folder, config, (parsed.host, parsed.port), Limits(**given), **how), config)


def serve_run(
    module: "ModuleType",
    folder: Path,
    config: "RecipeConfig",
    address: tuple[str, int],
    limits: "Limits",
    **how: Any,
) -> None:
    """Answer what the run in `folder` predicts of rows, until SIGTERM or Ctrl-C.

    `how` goes to the recipe's function `predictor`.

    Raises:
        UserError: as `open_predictions` and `listen` do; for more rows than are kept in memory.
    """
    from hf_accum.cli.prediction import open_predictions
    from hf_accum.cli.serving.app import app_of
    from hf_accum.cli.serving.batching import Batcher
    from hf_accum.cli.serving.metrics import Metrics
    from hf_accum.cli.serving.server import LOOPBACK, listen, serve

    def say(line: str) -> None:
        print(line, flush=True)

    with open_predictions(module, folder, config, **how) as opened, listen(*address) as listening:
        predictor = opened.rows.predictor
        if limits.max_rows > predictor.most_rows:
            raise UserError(
                f"--max_rows {limits.max_rows:,}: has to be at most {predictor.most_rows:,}, the rows of this recipe "
                "that are in memory at once"
            )
        if address[0] not in LOOPBACK:
            say(f"note: whoever reaches this machine at {address[0]} is answered: there is no login, no encryption")
        metrics = Metrics()
        batcher = Batcher(opened.rows, limits.max_rows, metrics, opened.task.lengths.unit)
        about = {"run": folder.name, "columns": list(predictor.adds)}
        try:
            serve(app_of(batcher, limits, metrics, about), listening, limits.timeout_seconds, say)
        finally:
            batcher.close()
