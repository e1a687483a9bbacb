"""What has state goes on from it: by this package's checkpoints as by accelerate's own `save_state`."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from numbered_rows import encode, make_stream, source_of
from torch import nn

from hf_accum.accumulation.accumulate import accumulate
from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.nonfinite import NonFiniteCheck
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.time_model import WorkingCosts
from hf_accum.data.pipeline import Pipeline
from hf_accum.distributed.ranks import OneRank
from hf_accum.run.checkpoint import BestCheckpoint, OtherFormat, load, load_latest

CPU = torch.device("cpu")


class Loop:
    """Somebody's own loop, with all that has state: it says which examples it saw, and how they were cut."""

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        torch.manual_seed(0)
        self.accelerator = accelerator
        self.model = nn.Linear(1, 1).double()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.cutter = Cutter(WorkingCapacity(Capacity(4)), WorkingCosts(is_settled=True))
        stream = make_stream(source_of((23, 40, 9)), OneRank(), 6, num_epochs=3)
        self.windows = Pipeline(stream, self.cutter, lambda examples, length: [e.length for e in examples], CPU)
        self.nonfinite = NonFiniteCheck(OneRank(), folder, print, max_skips=3)
        self.best = BestCheckpoint("f1")
        self.iterator = iter(self.windows)
        self.seen: list[Any] = []

    @property
    def stateful(self) -> list[Any]:
        return [self.windows, self.cutter, self.nonfinite, self.best]

    def run(self, num_windows: int) -> None:
        for _ in range(num_windows):
            window = next(self.iterator, None)
            if window is None:
                return
            cut = []
            for micro_batch in window.micro_batches(self.cutter):
                cut.append([example.id for example in micro_batch.examples])
                with accumulate(self.accelerator, self.model, micro_batch):
                    inputs = torch.tensor(micro_batch.batch, dtype=torch.float64)[:, None]
                    self.accelerator.backward(micro_batch.scaled(self.model(inputs).pow(2).sum()))
            step = window.window.step
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            if self.nonfinite.accepts(window, torch.tensor(float("nan")) if step == 4 else norm):
                self.optimizer.step()
            self.optimizer.zero_grad()
            self.best.update(step, {"f1": random.Random(step).random()})
            if step == 5:
                self.cutter.capacity.out_of_memory(3, 8)
            self.seen.append((step, cut, self.nonfinite.num_skips, self.best.step, self.model.weight.item()))

    def close(self) -> None:
        self.iterator.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("stop", [1, 4, 7, 20])
def test_a_loop_of_one_s_own_goes_on_by_accelerate_s_save_state(
    accelerator: Accelerator, tmp_path: Path, stop: int
) -> None:
    whole = Loop(accelerator, tmp_path)
    whole.run(1000)
    first = Loop(accelerator, tmp_path)
    accelerator.register_for_checkpointing(*first.stateful)
    first.run(stop)
    accelerator.save_state(str(tmp_path / "state"))
    torch.save(first.model.state_dict(), tmp_path / "weights")
    first.close()

    rest = Loop(accelerator, tmp_path)
    accelerator._custom_objects.clear()
    accelerator.register_for_checkpointing(*rest.stateful)
    accelerator.load_state(str(tmp_path / "state"))
    rest.model.load_state_dict(torch.load(tmp_path / "weights"))
    rest.iterator = iter(rest.windows)
    rest.run(1000)
    assert first.seen + rest.seen == whole.seen
    assert len(whole.seen) == 36


def test_states_are_what_json_can_hold(accelerator: Accelerator, tmp_path: Path) -> None:
    loop = Loop(accelerator, tmp_path)
    loop.run(6)
    for one in loop.stateful:
        assert json.loads(json.dumps(one.state_dict(), allow_nan=False)) == json.loads(json.dumps(one.state_dict()))
    loop.close()


def test_a_window_that_is_not_through_comes_again(accelerator: Accelerator, tmp_path: Path) -> None:
    loop = Loop(accelerator, tmp_path)
    loop.run(2)
    window = next(loop.iterator)
    next(window.micro_batches(loop.cutter))
    state = loop.windows.state_dict()
    loop.close()
    rest = Loop(accelerator, tmp_path)
    rest.windows.load_state_dict(state)
    again = next(iter(rest.windows)).window
    assert (again.step, again.digest) == (window.window.step, window.window.digest)
    assert encode([(e.id, e.id) for e in again.examples])[0].id == again.examples[0].id


def test_a_checkpoint_of_the_version_before_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Its `state.json` has no format."""
    from safetensors.torch import save_file

    from hf_accum.run.manifest import write_manifest

    folder = tmp_path / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    old = {"step": 10, "facts": {}, "base": "", "streams": [], "cutters": [], "best": {}, "num_skips": 0}
    (folder / "state.json").write_text(json.dumps(old))
    save_file({}, folder / "training_state.safetensors")
    write_manifest(folder)
    for read in (lambda: load(folder), lambda: load_latest(tmp_path, print)):
        told = r"step-00000010 was saved by another version .*format 1.*`resume never`"
        with pytest.raises(OtherFormat, match=told):
            read()
