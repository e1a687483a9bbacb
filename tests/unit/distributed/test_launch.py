"""Starting a run on its ranks, and what is refused before anything heavy is done."""

import os
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from accelerate.utils import DistributedType
from launching import launch

from hf_accum.distributed import launch as launch_module
from hf_accum.distributed.launch import end_accelerator, keeping_processes, start_accelerator


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


@pytest.mark.slow
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


def test_segments_are_to_grow_unless_the_allocator_was_set_up_already(
    clean_environment: pytest.MonkeyPatch, accelerator: object
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        clean_environment.setenv(name, "")  # given back afterwards
        clean_environment.delenv(name)
    start_accelerator()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        clean_environment.delenv("PYTORCH_ALLOC_CONF", raising=False)
        clean_environment.setenv(name, "max_split_size_mb:64")
        start_accelerator()
        assert os.environ.get("PYTORCH_ALLOC_CONF", "max_split_size_mb:64") == "max_split_size_mb:64"


def test_several_devices_talk_once_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes its memory with its first exchange."""
    said: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", said.append)
    for num_processes, kind in ((1, "meta"), (2, "cpu"), (2, "meta")):
        started: Any = SimpleNamespace(num_processes=num_processes, device=torch.device(kind))
        launch_module._talk_once(started)
    assert [tensor.device.type for tensor in said] == ["meta"]


@pytest.fixture
def on_card(clean_environment: pytest.MonkeyPatch) -> Any:
    """A function that starts on a GPU of a compute capability."""

    def start(capability: tuple[int, int], precision: str = "bf16", hip: str | None = None) -> Any:
        device = torch.device("cuda", 0)
        started = SimpleNamespace(
            device=device, mixed_precision=precision, num_processes=1, distributed_type=DistributedType.NO
        )
        clean_environment.setattr(accelerate, "Accelerator", lambda **_: started)
        clean_environment.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        clean_environment.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        clean_environment.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # by emulation
        clean_environment.setattr(torch.version, "hip", hip)
        return start_accelerator()

    return start


@pytest.mark.parametrize("capability", [(7, 5), (7, 0), (6, 1)])
def test_bf16_that_a_gpu_only_emulates_is_refused(on_card: Any, capability: tuple[int, int]) -> None:
    which = rf"bf16 on Tesla T4, of compute capability {capability[0]}\.{capability[1]}: has to be 8\.0 or higher"
    with pytest.raises(ValueError, match=rf"{which}.*with mixed precision fp16, or no"):
        on_card(capability)
    for precision in ("fp16", "no"):
        assert on_card(capability, precision).mixed_precision == precision


def test_bf16_from_ampere_on_and_on_amd_s_gpus_is_taken(on_card: Any) -> None:
    for capability in ((8, 0), (8, 6), (9, 0), (12, 0)):
        assert on_card(capability).mixed_precision == "bf16"
    assert on_card((7, 5), hip="7.0").mixed_precision == "bf16"


def test_trackers_end_with_a_run_and_talk_with_the_last_one(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(accelerator.state, "destroy_process_group", lambda *_: ended.append("talk"), raising=False)
    for name in ("of the first run", "of the last run"):
        accelerator.trackers = [SimpleNamespace(finish=lambda name=name: ended.append(name))]
        if name == "of the first run":
            with keeping_processes():
                end_accelerator(accelerator)
        else:
            end_accelerator(accelerator)
    assert ended == ["of the first run", "of the last run", "talk"]
