"""What a request asks and is told: rows out of JSON, and predictions into it."""

import base64
import binascii
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from hf_accum.cli.exit import OF_COMMANDS
from hf_accum.config.flags import flag_names
from hf_accum.data.formats.rows import BadRow, Row
from hf_accum.errors import first_line
from hf_accum.files import json_safe
from hf_accum.run.row_output import plain
from hf_accum.tasks.prediction import Told

_FLAG = re.compile(r" \(`(?P<name>[a-z_.]+)`\)")


class Refused(Exception):
    """A request that is not answered: its HTTP status, why, and more for the answer."""

    def __init__(self, status: int, reason: str, **more: Any) -> None:
        super().__init__(reason)
        self.status, self.answer = status, {"error": reason, **more}


def rows_of(body: bytes, most_rows: int) -> list[Any]:
    """The rows of a request: those of `{"rows": [...]}`, or the one object that it is. They may be anything.

    Raises:
        Refused: if it is no such JSON, or has too many.
    """
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body has to be UTF-8 (byte {error.start + 1} is not)") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg}, line {error.lineno}, column {error.colno}"
        raise Refused(400, f"the body has to be JSON ({where})") from None
    except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
        raise Refused(400, f"the body has to be JSON that can be read ({first_line(error)})") from None
    if not isinstance(value, dict):
        raise Refused(400, f'the body has to be {{"rows": [...]}} or one row, an object; it is a {_kind(value)}')
    rows = value.get("rows")
    if not (set(value) == {"rows"} and isinstance(rows, list)):
        if "rows" in value:
            raise Refused(400, 'the body has to be {"rows": [...]}, with a list and nothing else, or one row')
        return [value]
    if len(rows) > most_rows:
        raise Refused(413, f"has {len(rows):,} rows, more than the {most_rows:,} of a request: send several")
    return rows


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _kind(value: Any) -> str:
    of_others = {list: "list", str: "text", bool: "truth value", type(None): "null"}
    return of_others.get(type(value), "number")


def checked(row: Any, image_column: str | None) -> Row:
    """A row for `Predictor.prepare`; the image in a column is base64 in JSON. A path is none: no file is read.

    Raises:
        BadRow: if it is no object, or its image is no base64.
    """
    if not isinstance(row, dict):
        raise BadRow("", f"has to be an object, it is a {_kind(row)}")
    if image_column is None or image_column not in row:
        return row
    value = row[image_column]
    try:
        if not isinstance(value, str):
            raise ValueError("no text")
        return {**row, image_column: base64.b64decode(value, validate=True)}
    except (binascii.Error, ValueError):
        reason = "has to be the bytes of an image in base64 (a path, an address or a data URL is none)"
        raise BadRow(image_column, reason) from None


def of_request(said: str) -> str:
    """What is said of a row, without the flags in it, in brackets, that a client cannot set."""
    names = OF_COMMANDS | flag_names()
    return _FLAG.sub(lambda flag: "" if flag["name"] in names else flag[0], said)


def answer_of(told: Sequence[tuple[Told, int]], adds: Sequence[str], unit: str) -> dict[str, Any]:
    """The answer for rows: the columns of each, in order, and notes of what was cut, if anything was."""
    notes = [
        f"rows[{place}]: {num_cut:,} {unit} were cut off and not read"
        for place, (_, num_cut) in enumerate(told)
        if num_cut
    ]
    notes += [f"rows[{place}]: {of_request(said)}" for place, (one, _) in enumerate(told) for said in one.remarks]
    rows = [_row(one, adds) for one, _ in told]
    return {"rows": rows, **({"notes": notes} if notes else {})}


def _row(told: Told, adds: Sequence[str]) -> dict[str, Any]:
    values: Mapping[str, Any] = {**told.columns, **{name: _png(image) for name, image in told.images.items()}}
    return {name: json_safe(plain(values[name])) for name in adds if name in values}


def _png(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
