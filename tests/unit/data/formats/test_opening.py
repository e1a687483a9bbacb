"""Files as they are stored: each compression and encoding, whole or cut off."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from row_files import as_csv, as_jsonl, read_all, write

from hf_accum.data.formats.opening import suffix_of
from hf_accum.data.source import open_source

ROWS = [{"text": f"Fièvre {i}\r\nund Übelkeit 🩺", "label": ("yes", "no")[i % 2]} for i in range(20)]
TABLE = as_csv([["text", "label"], *(list(row.values()) for row in ROWS)])
CONTENTS = {"csv": TABLE, "jsonl": as_jsonl(ROWS), "json": json.dumps(ROWS).encode()}


def compressed(content: bytes, suffix: str) -> bytes:
    if suffix == "zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[suffix](content)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("format_", CONTENTS)
def test_compressed_files_are_read_from_any_row_on(tmp_path: Path, format_: str, suffix: str) -> None:
    """Also such as were put together of several."""
    content = CONTENTS[format_]
    middle = len(content) // 2
    parts = compressed(content[:middle], suffix) + compressed(content[middle:], suffix)
    source = open_source(write(tmp_path, f"rows.{format_}.{suffix}", parts), "train", columns=("text", "label"))
    assert [row for _, row in read_all(source)] == ROWS
    for start in (1, 19, 20):
        assert [row for _, row in read_all(source, start=start)] == ROWS[start:]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_file_that_is_cut_off_is_no_shorter_one(tmp_path: Path, suffix: str) -> None:
    content = b"text,label\n" + b"".join(b"note %d %d,yes\n" % (i, i * 7919 % 1000) for i in range(20_000))
    whole = compressed(content, suffix)
    file = write(tmp_path, f"rows.csv.{suffix}", whole[: -len(whole) // 3])
    with pytest.raises(ValueError, match=rf"rows.csv.{suffix}:? cannot be read"):
        read_all(open_source(file, "train"))
    with pytest.raises(ValueError, match="cannot be read"):
        open_source(write(tmp_path, f"rows.jsonl.{suffix}", b"text,label\n"), "train")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("format_", CONTENTS)
def test_encodings_with_a_byte_order_mark(tmp_path: Path, format_: str, encoding: str) -> None:
    text = CONTENTS[format_].decode()
    mark = "\ufeff" if encoding.endswith("e") else ""
    content = f"{mark}{text}".encode(encoding)
    source = open_source(write(tmp_path, f"rows.{format_}", content), "train", columns=("text", "label"))
    assert [row for _, row in read_all(source)] == ROWS
    assert [row for _, row in read_all(source, start=7)] == ROWS[7:]


def test_json_lines_of_another_encoding_say_how_to_convert_them(tmp_path: Path) -> None:
    line = json.dumps({"text": "Fièvre", "label": "yes"}, ensure_ascii=False).encode("cp1252")
    ((_, row),) = read_all(open_source(write(tmp_path, "rows.jsonl", line), "train"))
    assert str(row) == "not UTF-8 (byte 13 of the line)"
    assert "`iconv -f cp1252 -t utf-8 rows.jsonl > utf8-rows.jsonl`" in row.way_out


@pytest.mark.parametrize(
    ("file", "suffix"),
    [
        ("a.csv", ".csv"),
        ("a.CSV.GZ", ".csv"),
        ("a.b.jsonl.zst", ".jsonl"),
        ("gz", ""),
        ("a.gz", ""),
        ("a.tar.gz", ".tar"),
    ],
)
def test_the_suffix_is_that_in_front_of_the_compression_s(file: str, suffix: str) -> None:
    assert suffix_of(f"hf://datasets/me/notes@abc/{file}") == suffix
