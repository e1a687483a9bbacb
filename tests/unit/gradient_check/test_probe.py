"""A copy of a model in float64, and what a loss gives on it."""

import planted
import pytest
import torch
from planted import batches, encoder
from torch import nn

from hf_accum import check
from hf_accum.errors import UserError
from hf_accum.gradient_check.probe import Gradient, Probe, compare


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="no parameter is to be trained"):
        check(encoder().requires_grad_(False), planted.summed, batches(), stock=False)


def test_the_gradient_is_that_of_a_backward() -> None:
    model = encoder().double()
    probe = Probe(model, planted.summed)
    found = probe.gradient(batches())
    for batch in batches():
        planted.summed(model, batch).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(found.by_name[name], parameter.grad, rtol=0, atol=1e-12)  # type: ignore[arg-type]
    assert found.without == ()


def test_a_difference_says_how_far_off_and_where() -> None:
    right = Gradient(1.0, {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([2.0])}, ())
    other = Gradient(1.0, {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([0.0])}, ())
    difference = compare(other, right)
    assert (difference.relative, difference.parameter) == (0.5, "b")
    assert difference.norm_ratio == pytest.approx((17 / 21) ** 0.5)
    assert (
        compare(Gradient(1.0, {"a": torch.tensor([float("nan")] * 2), "b": right.by_name["b"]}, ()), right).relative
        > 1e9
    )


def test_less_than_float64_is_noticed() -> None:
    probe = Probe(encoder(), planted.summed)
    probe.watch(batches()[0])
    assert (probe.computes_less, probe.tolerance) == (False, 1e-9)
    probe = Probe(encoder(planted.OnStates(lambda _, states: states.float().double())), planted.summed)
    probe.watch(batches()[0])
    assert (probe.computes_less, probe.tolerance) == (True, 1e-5)


def test_a_whole_model_in_eval_mode_is_put_into_train_mode_and_parts_are_left() -> None:
    model = encoder(nn.Dropout(0.5))
    model.eval()
    assert Probe(model, planted.summed).model.get_submodule("between").training
    model.train().between.eval()
    assert not Probe(model, planted.summed).model.get_submodule("between").training


def test_quantised_weights_are_refused() -> None:
    model = encoder()
    model.extra = nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="before it is quantised"):
        Probe(model, planted.summed)


def test_16_bits_inside_are_noticed_and_their_rounding_is_none_of_the_cut() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(planted.WIDTH, planted.WIDTH) / 3)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return (states.bfloat16() @ self.weight.bfloat16()).to(states.dtype)

    report = check(encoder(Narrow()), planted.summed, batches(), stock=False)
    assert (report.kinds, report.tolerance) == ((), 0.03)
    assert any(note.startswith("16 bits are used inside") for note in report.notes)
    assert check(encoder(Narrow()), planted.mean, batches(), stock=False).kinds[0] == "mean_of_means"


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_model_that_kept_a_result_with_its_graph_is_copied() -> None:
    class Keeping(planted.Encoder):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            self.last = [super().forward(input_ids, attention_mask)]
            return self.last[0]

    model = Keeping()
    kept = planted.logits(model, batches()[0])
    assert check(model, planted.summed, batches(), stock=False).kinds == ()
    assert model.last[0] is kept
    assert kept.grad_fn is not None
    by_hook = encoder(nn.utils.weight_norm(nn.Linear(planted.WIDTH, planted.WIDTH)))
    assert check(by_hook, planted.summed, batches(), stock=False).kinds == ()


def test_weights_that_are_not_loaded_are_refused() -> None:
    with pytest.raises(UserError, match="meta device"):
        Probe(encoder().to("meta"), planted.summed)
