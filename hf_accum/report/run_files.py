"""What a run's folder holds, as it is at the moment: of a run that goes on, was stopped, or is through."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_accum.errors import UserError, first_line
from hf_accum.report.which_run import CONFIG, runs_near, seeds_in

_SEEDS, METRICS = "seeds.json", "metrics.jsonl"
_FAR_TOO_MANY = 2**53  # steps
_NOT_NUMBERS = {"step", "window_digest"}


@dataclass(frozen=True)
class Steps:
    """The steps of `metrics.jsonl`, in order, each once: a column of numbers for each key, NaN where one lacks."""

    step: np.ndarray
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.step)

    def of(self, name: str) -> np.ndarray:
        """A column, (num_steps,); all NaN if the file does not have it."""
        return self.columns.get(name, np.full(len(self.step), np.nan))

    def total(self, name: str) -> float:
        """The sum over the steps that have it."""
        return float(np.nansum(self.of(name)))


@dataclass(frozen=True)
class RunFiles:
    """A run's files. What is not there is empty; what could not be read is told in `problems`."""

    name: str
    folder: Path
    config: dict[str, Any]
    """The settings, those of a group by their path: `lora.rank`."""
    facts: dict[str, Any]
    """What the run said of itself at its start (`run.json`)."""
    tuning: dict[str, Any]
    evaluation: dict[str, Any]
    steps: Steps
    skips: list[dict[str, Any]]
    """The windows of `nonfinite.jsonl`."""
    resumes: list[int]
    """After which steps the run was gone on with."""
    checkpoints: list[int]
    problems: list[str] = field(default_factory=list)

    @property
    def is_through(self) -> bool:
        """Whether the run has ended as it was to."""
        return bool(self.evaluation)

    @property
    def num_steps(self) -> int | None:
        """How many steps it is to have, where that is known."""
        known = self.facts.get("num_steps")
        return int(known) if isinstance(known, int | float) else None

    @property
    def unit(self) -> str:
        """What the length of an example is counted in."""
        return "positions" if "resolution" in self.config else "tokens"


def read_run(folder: Path, name: str) -> RunFiles:
    """Read a run's folder.

    Raises:
        UserError: if it is none.
    """
    _check(folder)
    problems: list[str] = []
    return RunFiles(
        name=name,
        folder=folder,
        config=_flattened(_read_one(folder / CONFIG, problems)),
        facts=_read_one(folder / "run.json", problems),
        tuning=_read_one(folder / "tuning.json", problems),
        evaluation=_read_one(folder / "evaluation.json", problems),
        steps=_steps(folder / METRICS, problems),
        skips=[line for line in read_lines(folder / "nonfinite.jsonl", problems) if _is_number(line.get("step"))],
        resumes=[
            int(line["step"])
            for line in read_lines(folder / "resumes.jsonl", problems)
            if _is_number(line.get("step"))
        ],
        checkpoints=sorted(
            int(path.name.removeprefix("step-"))
            for path in (folder / "checkpoints").glob("step-*")
            if path.name.removeprefix("step-").isdigit()
        ),
        problems=problems,
    )


def read_lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one in memory at a time; lines that are none are counted in `problems`."""
    damaged: list[int] = []
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    value = None
                if isinstance(value, dict):
                    yield value
                elif line.strip():
                    damaged.append(number)
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path.name} could not be read ({first_line(error)})")
    if damaged:
        which = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        plural = "lines are" if len(damaged) > 1 else "line is"
        problems.append(f"{path.name}: {len(damaged):,} {plural} no JSON object and left out (line {which})")


def _check(folder: Path) -> None:
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "it is not there"
        raise UserError(f"run {folder}: has to be a run's folder, {what}{runs_near(folder)}")
    if (seeds := seeds_in(folder)) and not (folder / METRICS).exists():
        raise UserError(
            f"run {folder}: has runs of several seeds in it ({_SEEDS}); give these: {' '.join(map(str, seeds))}"
        )
    if not (folder / CONFIG).is_file() and not (folder / METRICS).is_file():
        raise UserError(
            f"run {folder}: has to be the folder that a run wrote (its `output_dir`); it has no "
            f"{CONFIG} and no {METRICS}{runs_near(folder)}"
        )


def _read_one(path: Path, problems: list[str]) -> dict[str, Any]:
    """The object in a file; empty if there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        value: Any = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except FileNotFoundError:
        return {}
    except OSError as error:
        problems.append(f"{path.name} could not be read ({first_line(error)})")
        return {}
    except (ValueError, RecursionError, yaml.YAMLError):
        value = None
    if not isinstance(value, dict):
        problems.append(f"{path.name} is damaged, and is left out")
        return {}
    return value


def _steps(path: Path, problems: list[str]) -> Steps:
    by_step: dict[int, dict[str, Any]] = {}
    num_without = num_again = 0
    for line in read_lines(path, problems):
        step = line.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < _FAR_TOO_MANY:
            num_without += 1
            continue
        num_again += step in by_step
        by_step[step] = line
    if num_without:
        problems.append(f"{path.name}: {num_without:,} lines have no number of a step, and are left out")
    if num_again:
        problems.append(f"{path.name}: {num_again:,} steps are there again; what was written last is shown")
    steps = sorted(by_step)
    names = dict.fromkeys(name for step in steps for name in by_step[step] if name not in _NOT_NUMBERS)
    columns = {name: np.array([_number(by_step[step].get(name)) for step in steps]) for name in names}
    return Steps(np.array(steps, dtype=np.int64), columns)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    try:
        return float(value) if _is_number(value) else float("nan")
    except OverflowError:
        return float("nan")


def _flattened(settings: dict[str, Any], group: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        is_group = isinstance(value, dict) and bool(value)
        flat |= _flattened(value, f"{group}{name}.") if is_group else {f"{group}{name}": value}
    return flat
