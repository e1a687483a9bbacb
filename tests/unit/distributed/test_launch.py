"""Starting a run on its ranks, and what is refused before anything heavy is done."""

import os

import pytest
from launching import launch

from hf_accum.distributed.launch import start_accelerator


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "MASTER_", "WORLD_SIZE", "LOCAL_RANK", "RANK")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_deepspeed_is_refused_with_the_reason(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed, which takes over the accumulation"):
        start_accelerator()


def test_fp16_on_a_cpu_is_refused(clean_environment: pytest.MonkeyPatch, accelerator: object) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    clean_environment.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        start_accelerator()


def test_a_launch_that_starts_fewer_processes_than_asked_for_is_refused() -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process, silently."""
    done = launch("--cpu", "--num_processes", "2", "-m", "recipes.clinical_classification", "--max_steps", "1")
    assert done.returncode != 0
    assert "accelerate was asked for several processes but started one" in done.stderr
    assert "accelerate launch --multi_gpu --num_processes N" in done.stderr


def test_settings_that_accelerate_keeps_are_overridden(
    clean_environment: pytest.MonkeyPatch, accelerator: object
) -> None:
    clean_environment.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    started = start_accelerator()
    assert started.gradient_accumulation_steps == 1
    assert not started.gradient_state.sync_with_dataloader
