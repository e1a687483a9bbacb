"""A function of the user's project, `module:function`, called; where it fails, which line of it does."""

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from hf_accum.errors import UserError, first_line


def call_function(place: str) -> Any:
    """What `module:function`, of the current folder or installed, returns.

    Raises:
        UserError: if there is no such module or function, or it fails; naming the file and the line.
    """
    module_name, _, name = place.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name in _with_parents(module_name):
            raise UserError(f"{place}: no module {module_name} in {here} or installed") from error
        raise UserError(f"{place}: {module_name} cannot be imported: {_failure(error, here)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{place}: {module_name} has no function {name!r}")
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{place}: {name} fails: {_failure(error, here)}") from error


def _with_parents(module_name: str) -> list[str]:
    parts = module_name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _failure(error: BaseException, here: str) -> str:
    """What failed, and in which line: the innermost one of the project; where it has none, of what it calls."""
    said = first_line(error)
    if isinstance(error, SyntaxError) and error.filename is not None:
        message = said.removesuffix(f" ({Path(error.filename).name}, line {error.lineno})")
        return f"{message} {_at(error.filename, error.lineno)}"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)[1:]]
    frames = [(file, line) for file, line in frames if not file.startswith("<")]
    own = [(file, line) for file, line in frames if Path(file).is_relative_to(here) and "site-packages" not in file]
    return f"{said} {_at(*(own or frames)[-1])}" if frames else said


def _at(file: str, line: int | None) -> str:
    return f"({file}, line {line})"
