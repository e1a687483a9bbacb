"""Checkpoints: all that a run needs to go on, written by a thread while it trains; and the weights that were best."""

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError, first_line
from hf_accum.evaluation.evaluate import LOWER_IS_BETTER
from hf_accum.files import LOCK, fill_folder_atomically, is_leftover
from hf_accum.models.saving import Processor, load_weights, save_model, weights_folder, weights_of, write_model
from hf_accum.models.usage import Usage
from hf_accum.run.card import write_card
from hf_accum.run.manifest import Damaged, check_manifest, write_manifest
from hf_accum.run.training_state import TrainingState

_STATE, _TENSORS = "state.json", "training_state.safetensors"
_PREFIX = "step-"
_FORMAT = 3
"""Of `state.json`. The first one had no number: fused LoRA layers, and dropout masks from fewer random bits."""
_SECONDS_BETWEEN_TRIES = (5.0, 20.0)


@dataclass
class BestCheckpoint:
    """Which evaluation was the best so far, and for how many it has not been beaten."""

    metric: str | None
    value: float | None = None
    step: int | None = None
    num_evaluations_since: int = field(default=0)

    def update(self, step: int, figures: Mapping[str, Any]) -> bool:
        """Take in an evaluation; True if it is the best so far. Without a metric none is."""
        if self.metric is None:
            return False
        new = figures[self.metric]
        is_better = (
            new is not None
            and not math.isnan(new)
            and (self.value is None or (new < self.value if self.metric in LOWER_IS_BETTER else new > self.value))
        )
        if is_better:
            self.value, self.step, self.num_evaluations_since = new, step, 0
        else:
            self.num_evaluations_since += 1
        return is_better

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; by another metric there is no best one yet.

        Raises:
            KeyError: if it is no such thing.
        """
        if state["metric"] == self.metric:
            self.value, self.step = state["value"], state["step"]
            self.num_evaluations_since = state["num_evaluations_since"]

    def is_beaten_for(self, patience: int | None) -> bool:
        """Whether the last `patience` evaluations brought nothing better; never without a patience."""
        return patience is not None and self.num_evaluations_since >= patience


class OtherFormat(UserError):
    """A checkpoint of another version of this package; the message says which, and what to do."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as it was read: where it is, its numbers, its tensors."""

    path: Path
    numbers: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def state(self) -> TrainingState:
        """The training's."""
        return TrainingState(self.tensors, self.numbers["training"])

    @property
    def step(self) -> int:
        """After which it was saved."""
        return int(self.numbers["step"])


class Checkpoints:
    """A run's checkpoints, `checkpoints/step-00000100` each, by rank 0: the adapter (or model), the training's state.

    They are copied to the host between two windows and written by a thread of its own, one at a time. Each is there
    whole, with a manifest, or not at all. The last `keep` stay, and the best one. When one cannot be written the run
    goes on: it is said, tried again, and the earlier ones stay.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        processor: Processor,
        ranks: Ranks,
        keep: int,
        say: Callable[[str], None],
        usage: Usage | None = None,
    ) -> None:
        self.folder = folder
        self.model = model
        self.processor = processor
        self.usage = usage
        self.is_main = ranks.index == 0
        self.keep = keep
        self.say = say
        self._writing: threading.Thread | None = None
        self._hurry = threading.Event()
        self._failed: Exception | None = None
        self._best: int | None = None

    def save(self, state: TrainingState, numbers: Mapping[str, Any]) -> None:
        """Begin to save what training is now, after the step that `numbers` say; on rank 0.

        Not again where it is there: a step is what it was, and later ones of an abandoned run were set aside.
        """
        self.wait(hurry=False)
        if int(numbers["step"]) in _saved(self.folder):
            self._failed = None
            return
        weights = weights_of(self.model)
        path = _path(self.folder, int(numbers["step"]))

        def write(folder: Path) -> None:
            self._write(folder, weights, state, numbers)

        best = numbers.get("best", {}).get("step")
        self._writing = threading.Thread(
            target=self._write_with_patience, args=(path, write, best), name="hf-accum-save", daemon=False
        )
        self._writing.start()

    def wait(self, *, hurry: bool = True) -> bool:
        """Until what was begun is there, or has failed; in a hurry with no wait between tries. True: it is there."""
        if self._writing is not None:
            if hurry:
                self._hurry.set()
            self._writing.join()
            self._writing = None
            self._hurry.clear()
        return self._failed is None

    def restore_weights(self, step: int) -> bool:
        """Put the weights saved after a step back into the model, on rank 0. False: not there, or damaged."""
        if not self.is_main:
            return True
        path = _path(self.folder, step)
        try:
            check_manifest(path)
            load_weights(self.model, path / weights_folder(self.model))
        except (Damaged, OSError) as error:
            self.say(f"the weights of step {step} cannot be loaded ({first_line(error)})")
            return False
        return True

    def export(self) -> Path:
        """Save the weights as the run's result, with patience.

        Raises:
            UserError: if that cannot be.
        """
        path = self.folder / weights_folder(self.model)
        for pause in (*_SECONDS_BETWEEN_TRIES, None) if self.is_main else ():
            try:
                save_model(self.model, self.processor, path, self.usage)
                write_card(self.folder)
                break
            except Exception as error:
                if pause is None:
                    raise UserError(
                        f"the result {path} could not be saved ({first_line(error)}): make room, or see to the "
                        "permissions; the same command then goes on from the last checkpoint"
                    ) from error
                self.say(f"{path.name} could not be saved ({first_line(error)}): tried again in {pause:.0f} s")
                time.sleep(pause)
        return path

    def write_card(self) -> None:
        """Write the result's card anew, with the figures that are known by now; on rank 0."""
        if self.is_main:
            try:
                write_card(self.folder)
            except OSError as error:
                self.say(f"the card of the result could not be written ({first_line(error)}): it has no figures")

    def _write_with_patience(self, path: Path, write: Callable[[Path], None], best_step: int | None) -> None:
        for pause in (*_SECONDS_BETWEEN_TRIES, None):
            try:
                fill_folder_atomically(path, write)
                self._failed = None
                self._remove_old(best_step)
                return
            except Exception as error:  # of a full disk safetensors has an error of its own
                self._failed = error
                gives_up = pause is None or self._hurry.is_set()
                self.say(
                    f"{path.name} could not be saved ({first_line(error)}): "
                    f"{'what there was before stays' if _saved(self.folder) else 'nothing is saved yet'}; "
                    f"{'the next one is tried when it is due' if gives_up else f'tried again in {pause:.0f} s'}"
                )
                if gives_up:
                    return
                self._hurry.wait(pause)

    def _write(
        self, folder: Path, weights: Mapping[str, Tensor], state: TrainingState, numbers: Mapping[str, Any]
    ) -> None:
        from safetensors.torch import save_file

        of_weights = folder / weights_folder(self.model)
        of_weights.mkdir()
        write_model(self.model, self.processor, of_weights, weights, usage=self.usage)
        save_file(dict(state.tensors), folder / _TENSORS)
        text = json.dumps({"format": _FORMAT, **numbers, "training": state.numbers}, indent=1)
        (folder / _STATE).write_text(text + "\n", encoding="utf-8")
        write_manifest(folder)

    def _remove_old(self, best_step: int | None) -> None:
        """All but the newest, and the best one as the newest knows it; or, where that is not there, the former."""
        saved = _saved(self.folder)
        if best_step in saved:
            self._best = best_step
        for step in saved[: -self.keep]:
            if step != self._best:
                shutil.rmtree(_path(self.folder, step), ignore_errors=True)


def load_latest(folder: Path, say: Callable[[str], None]) -> Loaded | None:
    """The newest checkpoint in a run's folder that is whole; damaged ones are said, and passed over. None: of none.

    Raises:
        UserError: if there are some, and none of them is whole.
    """
    steps = _saved(folder)
    last: Damaged | None = None
    for step in reversed(steps):
        try:
            return load(_path(folder, step))
        except Damaged as error:
            say(f"checkpoint {error}: it is passed over")
            last = error
    if steps:
        raise UserError(
            f"`output_dir` {folder}: none of its {len(steps)} checkpoints can be used ({last}); `resume never` "
            "starts anew, and keeps the earlier run beside"
        )
    return None


def load(path: Path) -> Loaded:
    """Read a checkpoint.

    Raises:
        Damaged: if it is not as it was written.
        OtherFormat: if another version of this package wrote it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_manifest(path)
    try:
        numbers = json.loads((path / _STATE).read_text(encoding="utf-8"))
        step = int(numbers["step"])
        if numbers.get("format") != _FORMAT:
            raise OtherFormat(
                f"the checkpoint {path} was saved by another version of hf-accum (format {numbers.get('format', 1)}, "
                f"and here it is {_FORMAT}), which would not go on to the same weights after step {step}: finish the "
                "run with that version, or `resume never` starts anew, and keeps the earlier run beside"
            )
        return Loaded(path, numbers, load_file(path / _TENSORS))
    except OtherFormat:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise Damaged(f"{path.name} cannot be read ({first_line(error)})") from error


def set_aside(folder: Path, last_step: int) -> None:
    """Take checkpoints of later steps out of the way of a run that goes on behind an earlier one."""
    for step in _saved(folder):
        if step > last_step:
            path = _path(folder, step)
            aside = path.with_name(f"abandoned-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def remove_half_written(folder: Path) -> None:
    """What a killed run left of a checkpoint, or of a result, that it was writing."""
    for place in (folder, folder / "checkpoints"):
        for path in filter(is_leftover, place.glob(".*")):
            if path.name != LOCK:  # this run's own by now
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)


def _path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"{_PREFIX}{step:08}"


def _saved(folder: Path) -> list[int]:
    """The steps of which there are checkpoints, in order."""
    names = [path.name for path in (folder / "checkpoints").glob(f"{_PREFIX}*") if path.is_dir()]
    return sorted(int(name.removeprefix(_PREFIX)) for name in names if name.removeprefix(_PREFIX).isdigit())
