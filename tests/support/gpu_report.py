"""What the tests of a device find: figures in tables, printed, and kept as JSON with what they were measured on."""

import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "datasets", "trl", "numpy")
_BYTES_FROM = "_bytes"


class Report:
    """Figures in tables, in the order in which they were found, and how each test ended."""

    def __init__(self) -> None:
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.started = time.time()

    def add(self, table: str, **figures: Any) -> dict[str, Any]:
        """A row; names that end in `_bytes` are shown in MiB."""
        self.tables.setdefault(table, []).append(figures)
        return figures

    def ended(self, test: str, outcome: str, seconds: float, why: str = "") -> None:
        """How a test ended; `why` it did not pass, in a line."""
        self.outcomes[test] = {"outcome": outcome, "seconds": round(seconds, 2), "why": why}

    def as_json(self, device: torch.device) -> dict[str, Any]:
        """All of it, with what the figures are worth nothing without."""
        header = header_of(device) | {"seconds": round(time.time() - self.started, 1)}
        return {"header": header, "tests": self.outcomes, "tables": self.tables}

    def write(self, path: Path, device: torch.device) -> None:
        """As a JSON file; what JSON has not stands there in words."""
        path.write_text(json.dumps(self.as_json(device), indent=1, default=str) + "\n")

    def lines(self, device: torch.device) -> Iterator[str]:
        """The same to read: the header, and a Markdown table for each."""
        for name, value in header_of(device).items():
            yield f"{name}: {value}"
        for table, rows in self.tables.items():
            yield ""
            yield f"{table}:"
            yield from markdown(rows)


def header_of(device: torch.device) -> dict[str, str]:
    """Device, versions, command and date."""
    found = {"date": time.strftime("%Y-%m-%d %H:%M:%S %z"), "command": shlex.join(["pytest", *sys.argv[1:]])}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["memory"] = f"{properties.total_memory / 2**20:.0f} MiB"
        found["num_devices"] = str(torch.cuda.device_count())
    else:
        found["device"] = f"{device.type} ({platform.machine()})"
    found["versions"] = ", ".join([f"Python {platform.python_version()}", *_versions()])
    return found


def _versions() -> Iterator[str]:
    for name in _LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} not installed"
    yield f"CUDA {torch.version.cuda}"


def markdown(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of a table with a column for each name that a row has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name.removesuffix(_BYTES_FROM) + " MiB" if name.endswith(_BYTES_FROM) else name for name in names]
    cells = [[_shown(name, row.get(name, "")) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, ["-" * width for width in widths], *cells):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"


def _shown(name: str, value: Any) -> str:
    if name.endswith(_BYTES_FROM) and isinstance(value, int | float):
        return f"{value / 2**20:.1f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
