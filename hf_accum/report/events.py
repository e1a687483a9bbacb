"""What happened in a run beside its steps: replays, skipped windows, resumes, checkpoints."""

from dataclasses import dataclass

import numpy as np

from hf_accum.report.run_files import RunFiles

_MOST_STEPS = 40


@dataclass(frozen=True)
class Event:
    """Something that happened, and at which steps."""

    what: str
    count: int
    steps: tuple[int, ...]

    @property
    def where(self) -> str:
        """The steps in words; of many the first ones."""
        more = len(self.steps) - _MOST_STEPS
        return ", ".join(f"{step:,}" for step in self.steps[:_MOST_STEPS]) + (
            f" and {more:,} more" if more > 0 else ""
        )


def replayed(run: RunFiles) -> np.ndarray:
    """The steps whose window started anew because memory ran out."""
    return run.steps.step[np.nan_to_num(run.steps.of("num_oom_replays")) > 0]


def skipped(run: RunFiles) -> np.ndarray:
    """The steps whose window was left out: its loss or gradient was not finite."""
    return np.array(sorted(int(line["step"]) for line in run.skips), dtype=np.int64)


def events_of(run: RunFiles) -> list[Event]:
    """All of them; of those that a run writes down nowhere there are none."""
    replays, steps = replayed(run), run.steps.step
    norms = steps[~np.isfinite(run.steps.of("grad_norm"))]
    losses = steps[~np.isfinite(run.steps.of("loss"))]
    skips = skipped(run)
    retries = np.nan_to_num(run.steps.of("num_alloc_retries"))
    more_retries = np.diff(retries, prepend=0.0) > 0
    found = [
        _event("windows started anew, because memory ran out", int(run.steps.total("num_oom_replays")), replays),
        _event("windows left out: loss or gradient not finite", len(skips), skips),
        _event("steps without a finite gradient norm (an overflow of fp16, or a window left out)", len(norms), norms),
        _event("steps without a finite loss", len(losses), losses),
        _event(
            "steps at which the allocator had to free memory and ask again",
            len(retries[more_retries]),
            steps[more_retries],
        ),
        _event("gone on after", len(run.resumes), np.array(run.resumes, dtype=np.int64)),
        _event("checkpoints that are there, after", len(run.checkpoints), np.array(run.checkpoints, dtype=np.int64)),
    ]
    return [event for event in found if event.count]


def _event(what: str, count: int, steps: np.ndarray) -> Event:
    return Event(what, count, tuple(steps.tolist()))
