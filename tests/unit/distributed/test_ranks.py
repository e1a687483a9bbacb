"""Starting a run on its ranks, and what is refused before anything heavy is done."""

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import launch
from thread_ranks import ThreadRanks, on_ranks

from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.launch import start_accelerator
from hf_accum.distributed.ranks import OneRank, bits_float, float_bits, talking
from hf_accum.errors import RankFailed


@given(st.floats(allow_nan=False))
def test_a_float_survives_as_bits(number: float) -> None:
    bits = float_bits(number)
    assert -(2**63) <= bits < 2**63
    assert math.copysign(1, bits_float(bits)) == math.copysign(1, number)
    assert bits_float(bits) == number


@pytest.mark.parametrize(
    "message",
    [
        "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:6824. This is ...",
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 12000ms for recv operation to complete",
        "NCCL communicator was aborted on rank 1.",
    ],
)
def test_a_rank_that_has_gone_is_told_in_plain_words(message: str) -> None:
    plain = r"another rank has ended, or has not answered .*`rank_timeout_minutes`"
    with pytest.raises(RankFailed, match=plain) as told, talking():
        raise RuntimeError(message)
    assert message in str(told.value)
    with pytest.raises(RuntimeError, match="same size"), talking():
        raise RuntimeError("tensors of the ranks are not of the same size")


def test_an_error_on_one_rank_is_an_error_on_all() -> None:
    def work(ranks: ThreadRanks) -> list[int]:
        def mine() -> int:
            if ranks.index == 1:
                raise ValueError("no disk")
            return ranks.index

        return on_all_ranks(ranks, mine)

    outcomes = on_ranks(3, work)
    assert isinstance(outcomes[1], ValueError)
    for rank in (0, 2):
        assert isinstance(outcomes[rank], RankFailed)
        assert str(outcomes[rank]) == "rank 1 failed: ValueError: no disk"
    assert on_ranks(3, lambda ranks: on_all_ranks(ranks, lambda: ranks.index * 2)) == [[0, 2, 4]] * 3
    assert on_all_ranks(OneRank(), lambda: "x") == ["x"]


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
