"""The first rows as the model will see them, and nothing else: before any weight is loaded or file written."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from hf_accum.accumulation.example import Example
from hf_accum.config.flags import as_flags, flag_names
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import BadRow, Row, good_rows
from hf_accum.data.split import SplitData
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.errors import Previewed, UserError, printable
from hf_accum.run.lengths import notes_of_lengths
from hf_accum.run.start import StartedRun
from hf_accum.tasks.preview import Previews
from hf_accum.tasks.task import Task

NUM_ROWS = 3
_MOST_PARTS = 2  # of a row that is cut into several
_LONGEST = 1_200  # characters of a text
_WIDTH = 10  # of a line's name


@dataclass
class _Shown:
    """A row, by its place, and what is kept of it: of each of its parts."""

    place: str
    parts: list[tuple[str, Any]] = field(default_factory=list)


def show_preview(
    run: StartedRun,
    config: RecipeConfig,
    data: SplitData,
    task: Task[Any],
    draw: Callable[[Example, int | None], Example] | None,
) -> NoReturn:
    """Print the first rows to train on, in the order of the data, from rank 0. A collective.

    What is drawn in an example (hidden tokens, augmentations) is what the first pass will draw.

    Raises:
        Previewed: at the end.
        UserError: for a row that cannot be used, as in a training; if there is none, or the task has no preview.
    """
    on_rank_0(run.ranks, lambda: _show(config, data, task, draw))
    run.accelerator.end_training()
    raise Previewed("three rows were shown, and nothing was trained or written")


def _show(
    config: RecipeConfig,
    data: SplitData,
    task: Task[Any],
    draw: Callable[[Example, int | None], Example] | None,
) -> None:
    if not isinstance(task, Previews):
        raise UserError(
            f"`preview`: has to be left out: the recipe's task, a {type(task).__name__}, has no `preview(example)`"
        )
    bad_rows = Counter[str]()
    rows = list(_first_rows(config, data, task, bad_rows))
    if not rows:
        raise UserError(f"no row to train on was found ({bad_rows.total():,} bad rows)")
    console = Console(soft_wrap=True)

    def say(name: str, text: str = "", indent: str = "  ") -> None:
        line = Text(indent).append(f"{name:{_WIDTH}}", style="bold")
        console.print(line.append(f" {printable(text)}" if text else ""), highlight=False)

    many = f"the first {len(rows)} rows" if len(rows) > 1 else "the only row"
    say(f"{many} to train on, as the model will see them; nothing is trained or written", indent="")
    for row in rows:
        say(f"{row.place}", indent="\n")
        if len(row.parts) > 1:
            shown = f"the first {_MOST_PARTS} are shown" if len(row.parts) > _MOST_PARTS else "both are shown"
            say("cut into", f"{len(row.parts):,} parts, of which {shown}")
        for example in task.encode(row.parts[:_MOST_PARTS]):
            try:
                example = example if draw is None else draw(example, 0)
                lines = task.preview(example)
            except BadRow as bad:
                raise UserError(f"{row.place}: {bad}") from bad
            say("length", as_flags(_length_of(example, task), flag_names()))
            for name, text in lines:
                say(name, _middle_left_out(text))
    console.print()
    if data.num_train is not None:
        say("data", f"{data.num_train:,} examples to train on, {data.num_held_out:,} held out", indent="")
    for note in [*data.notes, *notes_of_lengths(data, task, config.max_length)]:
        say("note", as_flags(note, flag_names()), indent="")
    for reason, number in (data.bad_rows if data.num_train is not None else bad_rows).items():
        say("left out", f"{number:,} bad rows ({reason})", indent="")


def _first_rows(config: RecipeConfig, data: SplitData, task: Task[Any], bad_rows: Counter[str]) -> Iterator[_Shown]:
    """Each with all of its parts."""

    def prepare(row: Row) -> Any:
        return task.prepare(row) if data.is_to_train_on(row) else None

    source, num_found = data.source, 0
    for shard in range(source.num_shards):
        shown, last = _Shown(""), -1
        for number, prepared in good_rows(source, shard, 0, prepare, config.on_bad_row, bad_rows):
            row_number = number // source.parts_per_row
            if row_number != last:
                if shown.parts:
                    yield shown
                if num_found == NUM_ROWS:
                    return
                num_found += 1
                shown, last = _Shown(f"{source.names[shard]}, row {row_number + 1}"), row_number
            shown.parts.append((f"{shard}:{number}", prepared))
        if shown.parts:
            yield shown
        if num_found == NUM_ROWS:
            return


def _length_of(example: Example, task: Task[Any]) -> str:
    told, cut_by = f"{example.length:,} {task.lengths.unit}", task.lengths.cut_by
    if example.num_truncated_tokens:
        most = f"`{cut_by}` {task.max_length:,}" if cut_by == "max_length" else f"`{cut_by}`"
        told += f"; cut off, and not seen: {example.num_truncated_tokens:,} ({most})"
    return f"{told}; weight {example.weight:g}"


def _middle_left_out(text: str) -> str:
    """A text, of a long one its start and its end: there is what was cut."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} [{len(text) - 2 * half:,} characters are not shown] {text[-half:]}"
