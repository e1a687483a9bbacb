"""Skipping rows ends where it would leave out too many of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from numbered_rows import make_stream
from row_files import GOOD, as_jsonl, write

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import BadRow, Row, Source
from hf_accum.data.split import SplitData, open_split
from hf_accum.data.survey import Observed
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.tokenization import text_of


def opened(folder: Path, num_rows: int, num_bad: int, **flags: Any) -> SplitData:
    rows = [GOOD | {"text": f"note {i}" if i >= num_bad else "", "patient": i} for i in range(num_rows)]
    file = write(folder, "rows.jsonl", as_jsonl(rows))
    config = RecipeConfig(on_bad_row="skip", **flags)
    data = open_split(file, ["text", "label"], config, group_column="patient")
    return data.surveyed(lambda row: Observed((), text_of(row, "text")), OneRank(), "skip")


@pytest.mark.parametrize(("num_bad", "share"), [(2, 0.05), (0, 0.0), (20, 0.5), (4, 0.1)])
def test_a_survey_takes_as_many_as_the_share(tmp_path: Path, num_bad: int, share: float) -> None:
    assert sum(opened(tmp_path, 40, num_bad, max_skipped_share=share).bad_rows.values()) == num_bad


@pytest.mark.parametrize(("num_bad", "share"), [(3, 0.05), (1, 0.0), (21, 0.5)])
def test_a_survey_stops_above_the_share(tmp_path: Path, num_bad: int, share: float) -> None:
    said = (
        rf"^{num_bad} of 40 rows cannot be used .*`max_skipped_share` {share:g}.*{num_bad} times: field 'text': empty"
    )
    with pytest.raises(ValueError, match=said):
        opened(tmp_path, 40, num_bad, max_skipped_share=share)


def rows_with(bad: Sequence[int], num_rows: int) -> Source:
    def read(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        for number in range(start, num_rows):
            yield number, BadRow("", "torn") if number in bad else {"value": f"0:{number}"}

    return Source(("rows",), read, {})


@pytest.mark.parametrize(
    ("bad", "num_rows", "said"),
    [
        (range(900, 1_100), 9_000, "100 of 1,000 rows"),
        (range(0, 9_000, 10), 9_000, "101 of 1,001 rows"),
        (range(2_000, 9_000), 9_000, "106 of 2,106 rows"),
        (range(3), 40, "3 of 40 rows"),
    ],
)
def test_a_stream_stops_as_soon_as_it_is_known(bad: range, num_rows: int, said: str) -> None:
    """Where no survey was made: after 1,000 rows, or at the end of the pass."""
    stream = make_stream(rows_with(bad, num_rows), OneRank(), 8, on_bad_row="skip", max_skipped_share=0.05)
    with pytest.raises(ValueError, match=f"^{said} cannot be used"):
        list(stream)


@pytest.mark.parametrize(("bad", "num_rows"), [(range(40), 2_000), (range(2), 40)])
def test_a_stream_goes_on_below_the_share(bad: range, num_rows: int) -> None:
    stream = make_stream(rows_with(bad, num_rows), OneRank(), 8, on_bad_row="skip", max_skipped_share=0.05)
    assert sum(window.num_examples for window in stream) == num_rows - len(bad)
