"""A preview: the first rows to train on, whole, from rank 0, and an end without anything written."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from thread_ranks import run_ranks
from tiny import make_tokenizer

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import BadRow, in_parts
from hf_accum.data.split import SplitData, open_split
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import Previewed, UserError
from hf_accum.run.preview import show_preview
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.text_classification.task import TextClassification, build_objective

LABELS = LabelColumn("label", "single_label_classification", ("no", "yes"))


def make_task(max_length: int = 6) -> TextClassification:
    return TextClassification("text", LABELS, build_objective(LABELS), make_tokenizer(), max_length)


def opened(folder: Path, files: list[list[dict[str, Any]]]) -> SplitData:
    """Rows of which those of the group of row 0 of the first file are held out."""
    data = folder / "data"
    data.mkdir()
    for number, rows in enumerate(files):
        (data / f"train-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_split(str(data), ["text", "label"], RecipeConfig(eval_fraction=0.5), group_column="group")


def rows(*texts: str) -> list[dict[str, Any]]:
    return [{"text": text, "label": ("no", "yes")[number % 2], "group": text} for number, text in enumerate(texts)]


def show(data: SplitData, task: Any, config: RecipeConfig | None = None, draw: Any = None, ranks: Any = None) -> None:
    run: Any = SimpleNamespace(ranks=ranks or OneRank(), accelerator=SimpleNamespace(end_training=lambda: None))
    with pytest.raises(Previewed):
        show_preview(run, config or RecipeConfig(), data, task, draw)


def trained_on(data: SplitData) -> list[str]:
    """The texts to train on, in order."""
    found: list[str] = []
    for shard in range(data.source.num_shards):
        for _, row in data.source.read(shard, 0):
            assert not isinstance(row, BadRow)
            found += [row["text"]] if data.is_to_train_on(row) else []
    return found


def test_the_first_rows_to_train_on_in_the_order_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = opened(tmp_path, [rows("w1", "w2 w3"), rows(*(f"w{i} w4 w5 w6 w7 w8" for i in range(12)))])
    show(data, make_task())
    said = capsys.readouterr().out
    assert said.startswith("the first 3 rows to train on")
    shown = [line.partition("[CLS] ")[2].removesuffix(" [SEP]") for line in said.splitlines() if "[CLS]" in line]
    assert shown == [" ".join(text.split()[:4]) for text in trained_on(data)[:3]]
    assert said.count("length     6 tokens; cut off, and not seen: 2 (--max_length 6); weight 1") == sum(
        len(text.split()) == 6 for text in trained_on(data)[:3]
    )
    assert "train-1.jsonl, row " in said


def test_it_is_said_where_there_are_fewer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = opened(tmp_path, [rows(*(f"w{i}" for i in range(3)))])
    number = len(trained_on(data))
    assert 0 < number < 3
    show(data, make_task())
    assert capsys.readouterr().out.startswith("the only row" if number == 1 else f"the first {number} rows")


def test_of_a_row_in_parts_the_first_two_are_shown_and_all_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = opened(tmp_path, [rows(*(f"w{i} w1 w2 w3" for i in range(12)))])
    parts = data.with_rows(lambda s: in_parts(s, lambda row: [{**row, "text": w} for w in row["text"].split()], 8))
    show(parts, make_task())
    said = capsys.readouterr().out
    assert said.count("cut into   4 parts, of which the first 2 are shown") == 3
    assert said.count("[CLS]") == 6


def test_a_bad_row_ends_it_or_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"text": "w9", "label": "maybe", "group": "w9"}
    data = opened(tmp_path, [[dict(bad, group=f"g{i}") for i in range(8)] + rows(*(f"w{i}" for i in range(12)))])
    run: Any = SimpleNamespace(ranks=OneRank())
    with pytest.raises(UserError, match=r"train-0\.jsonl, row \d: field 'label': label 'maybe'"):
        show_preview(run, RecipeConfig(), data, make_task(), None)
    show(data, make_task(), RecipeConfig(on_bad_row="skip"))
    assert "bad rows (field 'label': label 'maybe' is out of range" in capsys.readouterr().out


def test_what_is_random_is_drawn_for_the_first_pass(tmp_path: Path) -> None:
    data, drawn = opened(tmp_path, [rows(*(f"w{i}" for i in range(12)))]), []

    def draw(example: Any, epoch: int | None) -> Any:
        drawn.append((example.id, epoch))
        return example

    show(data, make_task(), draw=draw)
    texts = [row["text"] for _, row in data.source.read(0, 0) if not isinstance(row, BadRow)]
    assert drawn == [(f"0:{texts.index(text)}", 0) for text in trained_on(data)[:3]]


def test_what_a_terminal_would_obey_is_written_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = opened(tmp_path, [rows(*(f"w{i}" for i in range(12)))])

    class Shown(TextClassification):
        def preview(self, example: Any) -> list[tuple[str, str]]:
            return [("text", "[bold]\x1b[31mred `seed`\nline " + 2_000 * "x" + "END")]

    plain = make_task()
    show(data, Shown("text", LABELS, plain.objective, plain.tokenizer, 6))
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert said.count("[bold]\\x1b[31mred `seed`\\nline x") == 3
    assert said.count("characters are not shown]") == said.count("xEND\n") == 3


def test_a_task_without_a_preview_is_told(tmp_path: Path) -> None:
    data = opened(tmp_path, [rows("w1", "w2", "w3")])
    run: Any = SimpleNamespace(ranks=OneRank())
    with pytest.raises(UserError, match="`preview`: has to be left out"):
        show_preview(run, RecipeConfig(), data, SimpleNamespace(prepare=None), None)  # type: ignore[arg-type]


def test_rank_0_shows_and_all_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = opened(tmp_path, [rows(*(f"w{i}" for i in range(12)))])
    run_ranks(2, lambda ranks: show(data, make_task(), ranks=ranks))
    assert capsys.readouterr().out.count("rows to train on") == 1
