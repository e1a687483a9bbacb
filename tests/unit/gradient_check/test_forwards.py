"""What counts as the same loss and the same gradient."""

import pytest
import torch
from checked_models import WITHOUT_FAULT, classifier_of, computed_of, texts
from torch import nn

from hf_accum.gradient_check.forwards import Forwards, Group


def forwards_of(name: str = "bert", **how: object) -> Forwards:
    return Forwards(computed_of(classifier_of(WITHOUT_FAULT[name]), **how), texts())  # type: ignore[arg-type]


def group_of(forwards: Forwards) -> Group:
    return Group(forwards, [forwards.example(index, length) for index, length in enumerate((17, 6, 11))])


def test_losses_alone_are_those_of_autograd_over_all_texts() -> None:
    forwards = forwards_of()
    group = group_of(forwards)
    assert [example.length for example in group.examples] == [6, 11, 17]
    together = forwards.loss(*group.examples)
    assert sum(loss for loss, _ in group.alone) == pytest.approx(float(together.detach()), rel=1e-5)
    expected = torch.autograd.grad(together, [p for _, p in forwards.trained])
    for one, other in zip(group.gradient, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in forwards.model.parameters())


def test_another_order_of_sums_is_the_same_and_one_per_mille_is_not() -> None:
    group = group_of(forwards_of())
    loss = sum(group.losses)
    assert group.is_close(loss, loss * (1 + 5e-6))
    assert not group.is_close(loss, loss * 1.001)
    assert group.is_close_gradient([part * (1 + 5e-5) for part in group.gradient])
    assert not group.is_close_gradient([part * 1.002 for part in group.gradient])


def test_in_16_bits_what_roundings_do_is_the_same_and_five_percent_are_not() -> None:
    forwards = forwards_of("llama", precision="bfloat16")
    group = group_of(forwards)
    loss = sum(group.losses)
    assert group.is_close(loss, loss * 1.001)
    assert not group.is_close(loss, loss * 1.1)
    assert not group.is_close_gradient([part * 1.5 for part in group.gradient])
    with forwards.in_float32():
        exact = group_of(forwards)
        assert not exact.is_close(sum(exact.losses), sum(exact.losses) * 1.001)
    assert forwards.loss(*group.examples).isfinite()


def test_a_loss_of_nearly_nothing_may_differ_by_what_roundings_of_its_logits_do() -> None:
    group = group_of(forwards_of())
    vars(group)["losses"] = [1e-7, 1e-7, 1e-7]
    assert group.is_close(1e-7, 2e-7)
    assert group.least == pytest.approx(1e-5 * 0.1 * sum(example.weight for example in group.examples))


@pytest.mark.parametrize(("number", "lengths"), [(8, [6, 11, 17]), (2, [6, 17]), (1, [17])])
def test_no_more_are_computed_together_than_a_run_does(number: int, lengths: list[int]) -> None:
    group = group_of(forwards_of(num_examples=number))
    assert [example.length for example in group.that_fit().examples] == lengths


def test_the_smallest_trained_parameters_of_all_layers_stand_for_the_gradient() -> None:
    forwards = forwards_of()
    forwards.model.get_submodule("classifier").requires_grad_(False)
    assert {name for name, _ in forwards.trained} == {
        n for n, p in forwards.model.named_parameters() if p.requires_grad
    }
    big = Forwards(computed_of(nn.Sequential(nn.Linear(2000, 2000), nn.Linear(3, 2))), texts())
    assert [name for name, _ in big.trained] == ["1.bias", "1.weight", "0.bias"]
