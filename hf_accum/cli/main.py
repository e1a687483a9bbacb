"""Beside a training: plan and check come before it, and all others take the folder of a run that is there.

The training itself is `accelerate launch -m recipes.NAME`. Each command has a --help of its own.
"""

import argparse
from typing import NoReturn

from hf_accum.cli.commands import check, compare, evaluate, export, merge, plan, predict, publish, report, serve
from hf_accum.cli.exit import cleaning_up_at_sigterm, run
from hf_accum.cli.unknown_flags import flags_in


class _Parser(argparse.ArgumentParser):
    """Ends as the parser of a recipe's flags does, and so do the commands' own parsers."""

    def error(self, message: str) -> NoReturn:
        """End the process with a message, without the usage: that of all flags hides it."""
        of_command = "--help lists all flags"
        of_none = "--help lists the commands; a training is started by `accelerate launch -m recipes.NAME`"
        self.exit(2, f"error: {message}\n({of_command if ' ' in self.prog else of_none})\n")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = _Parser(prog="hf-accum", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check.add_to(commands)
    compare.add_to(commands)
    evaluate.add_to(commands)
    export.add_to(commands)
    merge.add_to(commands)
    plan.add_to(commands)
    predict.add_to(commands)
    publish.add_to(commands)
    report.add_to(commands)
    serve.add_to(commands)
    for command in commands.choices.values():
        command.set_defaults(own=flags_in(command.format_usage()))
    parsed, flags = parser.parse_known_args(arguments)
    debug = "--debug" in flags or "--debug=true" in flags  # also for what fails before the recipe reads its flags
    with cleaning_up_at_sigterm():
        run(lambda: parsed.work(parsed, flags), debug=debug)


if __name__ == "__main__":
    main()
