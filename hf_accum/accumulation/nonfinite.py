"""Gradients that are not finite make no step; those far above the usual are spoken of."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.window import Window
from hf_accum.distributed.ranks import Ranks, bits_float, float_bits
from hf_accum.errors import NotFinite, UserError
from hf_accum.files import JsonLines

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler

_NUM_NORMS, _FEWEST_NORMS = 64, 16  # whose median is the usual
_SPIKE = 10.0
_MOST_OVERFLOWS = 40  # of fp16, one after the other: each halves the scale, which begins at 2^16


class NonFiniteCheck:
    """Asked once for each window, between its gradient and the optimizer's step, on all ranks.

    A window whose loss or gradient is not finite on any rank is written to `nonfinite.jsonl` in a folder, as a JSON
    object in a line: step, epoch, digest, norm of the gradient, each rank's summed loss, and all ranks' examples by
    their ids. Numbers that are not finite are null. After `max_skips` of them `gave_up` is the error to end with.

    With the `scaler` of fp16 a gradient that is not finite is an overflow: the scaler lowers its scale, and the
    window is left out without a word, but for the 40th in a row. A loss that is not finite beside a gradient that is,
    and a norm over which the scaler lowers nothing, are no overflows.

    The first gradient norm above ten times the median of the last 64 (at least 16) is said, and then none before
    one below that.
    """

    def __init__(
        self,
        ranks: Ranks,
        folder: Path,
        say: Callable[[str], None],
        *,
        max_skips: int,
        scaler: "GradScaler | None" = None,
    ) -> None:
        self.ranks = ranks
        self.file = folder / "nonfinite.jsonl"
        self._lines = JsonLines(self.file, say)
        self.say = say
        self.max_skips = max_skips
        self.scaler = scaler
        self.num_skips = 0
        self.gave_up: NotFinite | None = None
        self._norms: deque[float] = deque(maxlen=_NUM_NORMS)
        self._is_spike = False
        self._num_overflows = 0

    def close(self) -> None:
        """Write lines that the disk had no room for before."""
        self._lines.close()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: how many windows were left out, and the norms that are the usual ones."""
        return {
            "num_skips": self.num_skips,
            "num_overflows": self._num_overflows,
            "norms": list(self._norms),
            "is_spike": self._is_spike,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            KeyError, TypeError, ValueError: if it is no such thing.
        """
        norms = [float(norm) for norm in state["norms"]]
        self.num_skips, self._num_overflows = int(state["num_skips"]), int(state["num_overflows"])
        self._norms = deque(norms, maxlen=_NUM_NORMS)
        self._is_spike = bool(state["is_spike"])

    def accepts(self, execution: WindowExecution, grad_norm: Tensor | float | None) -> bool:
        """Whether there is to be a step: the window's loss and gradient are finite. Waits for the device once.

        `grad_norm` is what `accelerator.clip_grad_norm_` gave. A collective, in which the ranks agree: one that
        stepped alone would train another model from there on. Of a window that is refused nothing is left but its
        gradients, which `optimizer.zero_grad` drops. Without a step the schedule of the learning rate does not go on
        either: it counts steps that were made, and a run that fails while warming up does not warm up further.

        Raises:
            UserError: if the loop over the window's micro-batches ended before the last one.
        """
        if not execution.is_done:
            raise UserError(
                f"window {execution.window.step} did not go through: its micro-batches were left before the last "
                "one, and its gradient was dropped; let the loop over `micro_batches` come to its end"
            )
        loss, norm = _numbers(execution.loss_sum(), math.nan if grad_norm is None else grad_norm)
        accepted = (
            self._is_finite(execution, loss, norm)
            if self.scaler is None
            else self._fits_scale(execution, loss, norm, self.scaler)
        )
        if not accepted:
            execution.restore_statistics()
        return accepted

    def _fits_scale(self, execution: WindowExecution, loss: float, norm: float, scaler: "GradScaler") -> bool:
        """Whether fp16's gradient did not overflow, and is finite; where there is no step, the scaler is told.

        Fused AdamW is called by the scaler after an overflow too, so that accelerate takes it for having stepped
        (accelerate#4242): here it is not called at all. The ranks agree, for they have the same gradient.
        """
        if math.isfinite(norm):
            self._num_overflows = 0
            accepted = self._is_finite(execution, loss, norm)
            if not accepted:
                scaler.update()  # or it would refuse to unscale the next window
            return accepted
        before = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() == before:  # each number is finite and only their norm is not; or the scale is 0
            self._num_overflows = 0
            return self._is_finite(execution, loss, norm)
        self._num_overflows += 1
        if self._num_overflows < _MOST_OVERFLOWS:
            return False
        self.max_skips = self.num_skips  # the scale is down to nothing: this is no overflow
        return self._is_finite(execution, loss, norm)

    def _is_finite(self, execution: WindowExecution, loss: float, norm: float) -> bool:
        window = execution.window
        everyone = self.ranks.gather([float_bits(loss), float_bits(norm)])
        losses, norms = ([bits_float(bits) for bits in column] for column in zip(*everyone, strict=True))
        if all(map(math.isfinite, (*losses, *norms))):
            self._look_for_spike(window.step, norm)
            return True
        self._write(window, losses, norm)
        loss = sum(losses) / window.num_items
        what = f"step {window.step}: loss {loss}, gradient norm {norm}: not finite, so no step is made"
        if self.num_skips == self.max_skips:
            execution.is_done = False  # the run goes on before it, if it does
            skipped = f", after {self.num_skips} others" if self.num_skips else ""
            self.gave_up = NotFinite(
                f"{what}{skipped}; the window's examples are in {self.file}; a lower `learning_rate` or other data "
                "may help, `on_nonfinite skip` leaves such windows out, up to `max_nonfinite_skips` of them"
            )
        else:
            self.num_skips += 1
            self.say(
                f"{what} ({self.num_skips} of {self.max_skips} that may be left out); its examples are in {self.file}"
            )
        return False

    def _write(self, window: Window, losses: list[float], norm: float) -> None:
        ids = self.ranks.gather_objects([example.id for example in window.examples])
        if self.ranks.index != 0:
            return
        line = {
            "step": window.step,
            "epoch": window.epoch,
            "window_digest": window.digest,
            "grad_norm": _or_null(norm),
            "loss_sums": [_or_null(loss) for loss in losses],
            "example_ids": [example_id for of_rank in ids for example_id in of_rank],
        }
        self._lines.add([line])

    def _look_for_spike(self, step: int, norm: float) -> None:
        if not math.isfinite(norm):
            return
        usual = median(self._norms) if len(self._norms) >= _FEWEST_NORMS else math.inf
        was_spike, self._is_spike = self._is_spike, norm > _SPIKE * usual
        if self._is_spike and not was_spike:
            self.say(
                f"step {step}: gradient norm {norm:.4g} is far above {usual:.4g}, the median of the last "
                f"{len(self._norms)} steps"
            )
        self._norms.append(norm)


def _numbers(loss_sum: Tensor | float, grad_norm: Tensor | float) -> tuple[float, float]:
    """Both, with one wait for the device."""
    device = grad_norm.device if isinstance(grad_norm, Tensor) else None
    both = torch.stack([torch.as_tensor(x, dtype=torch.float32, device=device) for x in (loss_sum, grad_norm)])
    loss, norm = both.tolist()
    return loss, norm


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
