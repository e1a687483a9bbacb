"""Files as they are stored: local or of a hub, compressed or not, in UTF-8 or in UTF-16 with a byte order mark."""

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TextIO

import fsspec

from hf_accum.errors import UserError

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
_BYTE_ORDER_MARKS = (  # that of UTF-16 LE begins that of UTF-32 LE
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ESCAPED = re.compile("[\udc80-\udcff]")


def opened(file: str, mode: str, **how: Any) -> AbstractContextManager[Any]:
    """A file for reading, local or of a hub."""
    if "://" not in file:  # a path as it is: fsspec would take a part of some for a protocol
        return fsspec.filesystem("file").open(file, mode, **how)
    return fsspec.open(file, mode, **how)  # type: ignore[return-value] (fsspec leaves open which)


def suffix_of(file: str) -> str:
    """A file's suffix without that of its compression, in small letters."""
    path = PurePosixPath(file)
    return PurePosixPath(path.stem if path.suffix.lower() in _COMPRESSIONS else path).suffix.lower()


@contextmanager
def content_of(file: str) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed by its name, to be read once from their beginning."""
    compression = _COMPRESSIONS.get(PurePosixPath(file).suffix.lower())
    if compression != "zstd":
        with opened(file, "rb", compression=compression) as content:
            yield content
        return
    import pyarrow

    # That of pyarrow reads on behind the first frame, and says where the last one is cut off; fsspec's does neither.
    with (
        opened(file, "rb") as raw,
        pyarrow.PythonFile(raw, mode="r") as stored,
        pyarrow.CompressedInputStream(stored, "zstd") as content,
    ):
        yield io.BufferedReader(content)  # type: ignore[arg-type] (it is a raw stream in all but its type)


def head_of(file: str) -> bytes:
    """A file's first bytes, decompressed."""
    with content_of(file) as content:
        return content.read(64)


def encoding_by(head: bytes) -> str:
    """By the byte order mark; UTF-8 without one."""
    return next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")


@contextmanager
def text_of_file(file: str, encoding: str) -> Iterator[TextIO]:
    """A file's text with its line breaks as they are.

    Bytes that are not of the encoding come through as lone surrogates, so that only their own row is bad.
    """
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    with content_of(file) as content, io.TextIOWrapper(content, encoding, errors, newline="") as text:
        yield text


def is_escaped(text: str) -> bool:
    """Whether a text has bytes in it that were not UTF-8."""
    return not text.isascii() and _ESCAPED.search(text) is not None


def wrong_encoding(file: str, escaped: str) -> str:
    """What is to be done with a file of which a text is not UTF-8."""
    name = PurePosixPath(file).name
    try:
        escaped.encode("utf-8", "surrogateescape").decode("cp1252")
        likely = "cp1252"  # each byte but five is a character there
    except UnicodeDecodeError:
        likely = "latin-1"
    return (
        f"if the whole file is in another encoding, of Windows say ({likely}), convert it: "
        f"`iconv -f {likely} -t utf-8 {name} > utf8-{name}`"
    )


def check_no_nul(head: str, file: str) -> None:
    """Refuse UTF-16 without its mark, which reads as UTF-8 with NUL characters.

    Raises:
        UserError: if a text's beginning has many.
    """
    if head.count("\0") > len(head) / 5:
        name = PurePosixPath(file).name
        raise UserError(
            "has NUL characters everywhere, as UTF-16 without its byte order mark has: convert it, "
            f"`iconv -f utf-16le -t utf-8 {name} > utf8-{name}`"
        )
