"""What all ranks do together: an error of one is an error of all; the weights of the first are those of all."""

from types import SimpleNamespace
from typing import Any

import accelerate.utils
import pytest
import torch
from accelerate.utils import DistributedType
from thread_ranks import ThreadRanks, on_ranks
from torch import Tensor, nn

from hf_accum.distributed.collectives import broadcast_weights, on_all_ranks, refuse_strategies_that_talk
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import RankFailed, UserError


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


@pytest.mark.parametrize("strategy", list(DistributedType))
def test_strategies_whose_ranks_talk_in_every_forward_are_refused(strategy: DistributedType) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=strategy)
    if strategy is DistributedType.NO or strategy.name.startswith("MULTI_"):
        refuse_strategies_that_talk(accelerator)
        return
    with pytest.raises(UserError, match=f"configured for {strategy.value}, whose ranks talk in every forward"):
        refuse_strategies_that_talk(accelerator)


class FourBit(nn.Module):
    """A frozen 4-bit layer of bitsandbytes, an adapter that is trained, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        bnb: Any = pytest.importorskip("bitsandbytes")
        self.frozen = bnb.nn.Linear4bit(64, 64, compress_statistics=True, quant_type="nf4").to("cpu")
        self.frozen.requires_grad_(False)
        self.adapter = nn.Linear(64, 2, bias=False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("positions", torch.arange(4), persistent=False)


class RankOfMany:
    """The first one of two, whose broadcast takes nothing that NCCL could be without: like it, no other tensors."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        on_device = [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]
        self.known = {tensor.data_ptr() for tensor in on_device}
        self.sent: list[int] = []
        self.accelerator: Any = SimpleNamespace(num_processes=2)
        monkeypatch.setattr(accelerate.utils, "broadcast", self.broadcast)

    def broadcast(self, tensor: Tensor, from_process: int) -> Tensor:
        assert from_process == 0
        if tensor.data_ptr() not in self.known:
            raise RuntimeError("No backend type associated with device type cpu")
        self.sent.append(tensor.data_ptr())
        return tensor.clone().fill_(1)


def test_what_is_trained_and_the_buffers_are_those_of_rank_0_and_nothing_else_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = FourBit()
    others = [name for name in model.state_dict() if "quant" in name]
    assert others  # which are no parameters, and stay on the CPU
    frozen = model.frozen.weight.detach().clone()
    rank = RankOfMany(model, monkeypatch)
    broadcast_weights(model, rank.accelerator)
    assert sorted(rank.sent) == sorted(rank.known)  # each once
    assert all(bool((tensor == 1).all()) for tensor in (model.adapter.weight, *model.norm.parameters()))
    assert all(bool((tensor == 1).all()) for tensor in model.buffers())
    assert torch.equal(model.frozen.weight, frozen)


def test_a_single_rank_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    rank = RankOfMany(model, monkeypatch)
    rank.accelerator.num_processes = 1
    broadcast_weights(model, rank.accelerator)
    assert rank.sent == []
