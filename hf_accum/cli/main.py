"""The commands: `hf-accum plan`."""

import argparse
from typing import TYPE_CHECKING

from hf_accum.cli.commands.plan import _PLAN, _VARIANTS, _plan
from hf_accum.cli.exit import run

if TYPE_CHECKING:
    pass


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hf-accum", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    planner = commands.add_parser("plan", help="what fits into which memory", description=_PLAN, allow_abbrev=False)
    planner.add_argument("recipe", help="a module of recipes, or any module with a function `workload(config)`")
    planner.add_argument(
        "--memory", default="4GiB,8GiB,16GiB,24GiB", help="sizes, with commas (default: %(default)s)"
    )
    planner.add_argument("--variants", default=_VARIANTS, help="ways of training, with commas (default: %(default)s)")
    planner.add_argument("--picture", metavar="FILE", help="draw the frontiers: a file .svg or .png")
    planner.add_argument("--verified", metavar="FILE", help="also show what a run measured: its tuning.json")
    parsed, flags = parser.parse_known_args(arguments)
    debug = "--debug" in flags or "--debug=true" in flags  # also for what fails before the recipe reads its flags
    run(
        lambda: _plan(parsed.recipe, parsed.memory, parsed.variants, parsed.picture, parsed.verified, flags),
        debug=debug,
    )


if __name__ == "__main__":
    main()
