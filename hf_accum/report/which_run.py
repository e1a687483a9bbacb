"""Which folders of runs may have been meant, where one was given that is none."""

from pathlib import Path

CONFIG = "config.yaml"
_MOST = 5


def seeds_in(folder: Path) -> list[Path]:
    """The runs of several seeds that lie in a folder."""
    return sorted(file.parent for file in folder.glob(f"seed-*/{CONFIG}"))


def runs_near(folder: Path) -> str:
    """The end of a message: the run in whose folder a place lies, or the runs in it, or beside it if it is not there.

    Empty where there is none.
    """
    if (folder.parent / CONFIG).is_file():
        return f"; is {folder.parent} meant?"
    place = folder if folder.is_dir() else folder.parent
    runs = sorted(place.glob(f"*/{CONFIG}"), key=lambda file: file.stat().st_mtime, reverse=True)
    if not runs:
        return ""
    names = ", ".join(str(file.parent) for file in runs[:_MOST])
    return f"; runs that are there: {names}" + (f" and {len(runs) - _MOST:,} older ones" if len(runs) > _MOST else "")
