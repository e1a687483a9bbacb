"""The summary says what the run will do; its figures are counted here by hand."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from torch import nn

from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.run.summary import describe_run
from hf_accum.tuner.tuning import Tuning


def describe(accelerator: Accelerator, config: RecipeConfig | None = None, **changes: Any) -> str:
    model = nn.Sequential(nn.Linear(99, 10, bias=False), nn.Linear(10, 1, bias=False))
    model[0].weight.requires_grad_(False)
    of_data: dict[str, Any] = {
        "num_train": 100,
        "num_held_out": 11,
        "num_calibration": None,
        "bad_rows": {},
        "notes": [],
        "notes_of_files": (),
        "mixture": None,
    }
    of_data |= {name: changes.pop(name) for name in of_data if name in changes}
    trainable: Any = SimpleNamespace(
        model=changes.pop("model", model), base=None, new_modules=changes.pop("new_modules", ())
    )
    facts: dict[str, Any] = {"num_steps": 4, "tunings": [Tuning.as_given(5, 512)], "earlier": None}
    data: Any = SimpleNamespace(**of_data)
    how = facts | changes
    return describe_run(config or RecipeConfig(), data, trainable=trainable, accelerator=accelerator, **how)


def test_it_says_in_words_what_the_run_will_do(accelerator: Accelerator, tmp_path: Path) -> None:
    config = RecipeConfig(
        effective_batch_size=32, micro_batch_size=5, lora=LoraConfig(rank=7), output_dir=str(tmp_path)
    )
    said = describe(accelerator, config, new_modules=("pooler", "classifier"))
    expected = [
        ("data", "100 examples to train on, 11 held out"),
        ("model", "LoRA of rank 7: 10 of 1,000 parameters are trained (1.00%)"),
        ("", "; new, without pretrained weights: pooler, classifier"),
        ("ranks", "1 on cpu, precision no"),
        ("window", "32 examples per optimizer step over all ranks, cut into micro-batches that fit"),
        ("", "; the gradient is that of the whole window"),
        ("memory", "at most 5 examples at once on each rank, as given"),
        ("steps", "4, about 1.00 passes over the data"),
        ("", "; the last window of a pass has 4 examples and is used with its true weight"),
        ("note", "a pass over the data is only 4 optimizer steps: few to learn from; more passes are made by "),
        ("", "`num_epochs`, more steps in each by a smaller `effective_batch_size`"),
        ("folder", str(tmp_path)),
    ]
    assert said == "".join(f"\n{name:<11}{text}" if name else text for name, text in expected).strip()
    of_earlier = replace(config, init_from="runs/january")  # which brings the weights of the classifier
    assert "new, without" not in describe(accelerator, of_earlier, new_modules=("pooler", "classifier"))


def test_full_fine_tuning_is_called_so(accelerator: Accelerator) -> None:
    said = describe(accelerator, RecipeConfig(lora=LoraConfig(rank=0)))
    assert "full fine-tuning: 10 of 1,000 parameters" in said
    assert "new, without" not in said


@pytest.mark.parametrize(
    ("num_train", "num_steps", "passes", "rest"), [(96, 3, "1.00", 0), (96, 7, "2.33", 0), (33, 5, "2.50", 1)]
)
def test_passes_and_the_last_window(
    accelerator: Accelerator, num_train: int, num_steps: int, passes: str, rest: int
) -> None:
    """A pass of 33 examples is two windows, of 32 and of 1."""
    said = describe(accelerator, num_train=num_train, num_steps=num_steps)
    assert f"about {passes} passes" in said
    expected = f"last window of a pass has {rest} examples" if rest else "windows of a pass come out even"
    assert expected in said


def test_a_dataset_of_unknown_size(accelerator: Accelerator) -> None:
    config = RecipeConfig(num_epochs=None, max_steps=1500)
    said = describe(accelerator, config, num_train=None, num_held_out=None, num_steps=1500)
    assert "steps      1,500, over as many passes as they take" in said
    assert "data " not in said


def test_fewer_examples_than_a_window_are_one(accelerator: Accelerator) -> None:
    said = describe(accelerator, num_train=31, num_steps=1)
    assert "a pass has fewer examples than one window: it is one window, used with its true weight" in said
    assert "fewer examples" not in describe(accelerator, num_train=32, num_steps=1)


@pytest.mark.parametrize(("num_train", "is_few"), [(19 * 32, True), (19 * 32 + 1, False), (1, True)])
def test_a_pass_of_a_handful_of_steps_is_said(accelerator: Accelerator, num_train: int, is_few: bool) -> None:
    said = describe(accelerator, num_train=num_train)
    assert (f"a pass over the data is only {-(-num_train // 32)} optimizer steps" in said) == is_few


def test_notes_on_the_data_are_said(accelerator: Accelerator) -> None:
    left_out = "left out: 1 file in the folder, codes.doc"
    said = describe(accelerator, notes=["no row to train on has the label ear, nose"], notes_of_files=(left_out,))
    assert f"note       {left_out}\nnote       no row to train on has the label ear, nose\n" in said
    assert "note" not in describe(accelerator, num_train=640)


def test_bad_rows_that_were_found_are_said(accelerator: Accelerator) -> None:
    said = describe(accelerator, bad_rows={"not UTF-8": 1200, "empty text": 1})
    assert "left out: 1,200 bad rows (not UTF-8)\nleft out: 1 bad rows (empty text)" in said


def test_batch_statistics_are_warned_of(accelerator: Accelerator) -> None:
    assert "BatchNorm" not in describe(accelerator)
    assert "BatchNorm layers, which see the micro-batch" in describe(accelerator, model=nn.BatchNorm1d(3))


def test_an_earlier_run_is_said_to_be_moved(accelerator: Accelerator) -> None:
    said = describe(accelerator, earlier=Path("runs/latest-earlier-1"))
    assert said.splitlines()[-1].strip() == "the earlier run that stood there is now runs/latest-earlier-1"
