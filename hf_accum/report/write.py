"""A report of runs, read, drawn and written: once, or again and again while a run goes on."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hf_accum.byte_sizes import format_bytes
from hf_accum.errors import UserError, printable
from hf_accum.files import partial_of, why_not_written
from hf_accum.report.page import render
from hf_accum.report.run_files import RunFiles, read_run

PAGE = "report.html"
"""The only file of a report that may be in a run's folder."""
_SECONDS_BETWEEN_LOOKS = 5.0


def write_report(
    folders: Sequence[Path],
    output: Path | None = None,
    *,
    figures: Path | None = None,
    texts: bool = True,
    reload_seconds: int | None = None,
) -> tuple[Path, list[RunFiles]]:
    """Write the page of some runs, and into the folder `figures` each figure as .svg and .png: all of it or nothing.

    Returns the page's path and what was read. `output` may be left out for one run: `report.html` in its folder. See
    `render` for the rest.

    Raises:
        UserError: if a folder is no run's, is given twice, or something cannot be written.
    """
    page, figures = places(folders, output, figures)
    runs = [read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    report = render(runs, texts=texts, with_files=figures is not None, reload_seconds=reload_seconds)
    files = {page: report.html.encode("utf-8", errors="replace")}  # JSON may have halves of characters
    if figures is not None:
        files |= {figures / name: data for name, data in report.figures.items()}
    made = None if figures is None or figures.exists() else figures
    try:
        if made is not None:
            made.mkdir()
        _write_all(files)
    except BaseException as error:
        if made is not None:
            with suppress(OSError):
                made.rmdir()
        if not isinstance(error, OSError):
            raise
        beside = "" if figures is None else f" with its figures in {figures}"
        raise UserError(
            f"`output` {page}: the report could not be written{beside} ({why_not_written(figures or page, error)}); "
            f"it takes about {format_bytes(sum(map(len, files.values())))}"
        ) from error
    return page, runs


def watch(
    folders: Sequence[Path],
    output: Path | None = None,
    *,
    figures: Path | None = None,
    texts: bool = True,
    say: Callable[[str], None] = print,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Write the report, and again whenever a run has written something, until all are through.

    At an interrupt it is written once more, so that no browser waits for a next one.

    Raises:
        UserError: as `write_report`.
    """
    seen = None
    try:
        while True:
            now = _state(folders)
            if now != seen:
                seen = now
                goes_on = not all((folder / "evaluation.json").exists() for folder in folders)
                reload_seconds = round(2 * _SECONDS_BETWEEN_LOOKS) if goes_on else None
                page, runs = write_report(
                    folders, output, figures=figures, texts=texts, reload_seconds=reload_seconds
                )
                say(f"written: {page}, after step {max((_last(run) for run in runs), default=0):,}")
                if not goes_on:
                    return
            pause(_SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        page, _ = write_report(folders, output, figures=figures, texts=texts)
        say(f"written: {page}; no longer watched")


def places(folders: Sequence[Path], output: Path | None, figures: Path | None) -> tuple[Path, Path | None]:
    """Where the page and the figures go.

    Raises:
        UserError: if they cannot go there.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UserError(f"runs {', '.join(map(str, folders))}: each has to be given once")
    if output is None and len(folders) != 1:
        raise UserError(f"`output`: has to be given for {len(folders)} runs, which have no folder in common")
    page = folders[0] / PAGE if output is None else output
    if page.is_dir():
        raise UserError(f"`output` {page}: has to be a file, it is a folder")
    if not page.absolute().parent.is_dir() and output is not None:
        raise UserError(f"`output` {page}: has to be in a folder that is there")
    for name, place in (("output", output), ("figures", figures)):
        parents = () if place is None else (place.resolve(), *place.resolve().parents)
        if place is not None and set(parents) & set(resolved) and (name, place.name) != ("output", PAGE):
            raise UserError(
                f"`{name}` {place}: has to be outside of a run's folder, in which a later run takes no other files"
            )
    if figures is not None and not (
        figures.is_dir() or (figures.absolute().parent.is_dir() and not figures.exists())
    ):
        raise UserError(f"`figures` {figures}: has to be a folder, or a new one in a folder that is there")
    return page, figures


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of their paths, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = [printable("/".join(of_folder[-length:])) for of_folder in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("folders are different")


def _write_all(files: Mapping[Path, bytes]) -> None:
    """Write files under other names, and rename them once all are there."""
    partials = {path: partial_of(path) for path in files}
    try:
        for path, data in files.items():
            with partials[path].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, partial in partials.items():
            partial.replace(path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def _last(run: RunFiles) -> int:
    return int(run.steps.step[-1]) if len(run.steps) else 0


def _state(folders: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What runs have written so far: their files' sizes and times."""
    state: list[tuple[str, int, int]] = []
    for folder in folders:
        for path in (*sorted(folder.glob("*.json*")), folder / "config.yaml", folder / "checkpoints"):
            try:
                found = path.stat()
            except OSError:
                continue
            state.append((str(path), found.st_size, found.st_mtime_ns))
    return state
