"""The commands: `hf-accum plan`."""

import argparse

from hf_accum.cli.commands import plan
from hf_accum.cli.exit import run


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hf-accum", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    plan.add_to(commands)
    parsed, flags = parser.parse_known_args(arguments)
    debug = "--debug" in flags or "--debug=true" in flags  # also for what fails before the recipe reads its flags
    run(lambda: parsed.work(parsed, flags), debug=debug)


if __name__ == "__main__":
    main()
