"""Activations in host memory: the same gradient, less on the device, and weights that stay."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from hf_accum.device.live_bytes import LiveBytes
from hf_accum.errors import UserError
from hf_accum.models import offload
from hf_accum.models.offload import ActivationOffload, check_offload, offload_activations, offload_of


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)).train()


def gradients_of(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(1, 100, (4, 64))
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.fixture
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "_FROM_BYTES", 1024)


def test_the_gradient_is_the_same_to_the_last_bit(small_ones_too: None) -> None:
    plain, offloaded = bert(), bert()
    offload_activations(offloaded)
    for one, other in zip(gradients_of(plain), gradients_of(offloaded), strict=True):
        assert torch.equal(one, other)


def test_activations_are_moved_and_weights_are_not(small_ones_too: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert()
    offload_activations(model)
    moved: list[Tensor] = []
    pack = ActivationOffload._pack

    def watched(self: ActivationOffload, tensor: Tensor) -> Any:
        kept = pack(self, tensor)
        if not isinstance(kept, Tensor):
            moved.append(tensor)
        return kept

    monkeypatch.setattr(ActivationOffload, "_pack", watched)
    gradients_of(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(moved) > 20
    assert not weights & {tensor.untyped_storage().data_ptr() for tensor in moved}
    assert min(tensor.nbytes for tensor in moved) >= 1024


def test_what_is_elsewhere_does_not_count_as_of_the_device(small_ones_too: None) -> None:
    alive = {}
    for how in ("plain", "offloaded"):
        model = bert()
        if how == "offloaded":
            offload_activations(model)
            found = offload_of(model)
            assert found is not None
            found.host = torch.device("meta")
        ids = torch.randint(1, 100, (4, 64))
        with LiveBytes() as live:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            alive[how] = live.current_bytes
            logits.sum().backward()  # of nothing's values
    assert alive["offloaded"] < 0.2 * alive["plain"]


def test_nothing_is_moved_without_a_graph(small_ones_too: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert().eval()
    offload_activations(model)
    monkeypatch.setattr(ActivationOffload, "_pack", None)  # would be called
    with torch.inference_mode():
        model(input_ids=torch.ones(2, 8, dtype=torch.long))


def test_a_cpu_has_no_other_memory() -> None:
    with pytest.raises(UserError, match="`activation_offload` true: has to be false on a CPU"):
        check_offload(torch.device("cpu"))
    check_offload(torch.device("cuda"))
