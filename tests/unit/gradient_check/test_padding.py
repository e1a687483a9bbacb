"""More padding, and less."""

import planted
import pytest
from planted import batches, encoder

from hf_accum import check
from hf_accum.gradient_check.padding import find_padding
from hf_accum.gradient_check.probe import Probe
from hf_accum.gradient_check.rows import TensorRows


def test_padding_that_leaks_is_found_with_the_module_that_lets_it_in() -> None:
    (finding,) = check(encoder(is_masked=False), planted.summed, batches(), stock=False).findings
    assert finding.kind == "padding"
    assert finding.where[0].startswith("attention (MultiheadAttention)")


def test_padding_is_on_the_side_on_which_the_batch_has_it() -> None:
    """A loss of the last position is right for texts that are padded on the left: more of it changes nothing."""
    left = [{name: of.flip(1) if of.dim() > 1 else of for name, of in batch.items()} for batch in batches(False)]

    def of_the_last(model: planted.Encoder, batch: planted.Batch) -> planted.Tensor:
        return model(batch["input_ids"], batch["attention_mask"])[:, -1].logsumexp(-1).sum()

    rows = TensorRows([left[1]], pad_token_id=0)
    assert rows.is_left
    findings, differences, not_compared = find_padding(Probe(encoder(), of_the_last), rows)  # type: ignore[arg-type]
    assert (findings, not_compared) == ([], [])
    assert max(differences.values()) < 1e-12
    assert len(differences) == 2


def test_a_batch_at_the_last_position_is_compared_without_padding_alone() -> None:
    rows = TensorRows(batches(), pad_token_id=0, most_positions=9)
    findings, differences, not_compared = find_padding(Probe(encoder(), planted.summed), rows)
    assert not findings
    assert list(differences) == ["single examples without padding"]
    assert not_compared == ["more padding: the batch has as many positions as the model"]


@pytest.mark.parametrize("left_out", ["attention_mask", "input_ids"])
def test_what_has_no_mask_is_said_not_to_be_compared(left_out: str) -> None:
    data = [{name: of for name, of in batch.items() if name != left_out} for batch in batches()]
    if left_out == "input_ids":
        data = [{"x": batch["attention_mask"], "labels": batch["labels"]} for batch in data]
    same = [{name: of[:, :5] for name, of in batch.items()} for batch in data]
    _, differences, (said,) = find_padding(Probe(encoder(), planted.summed), TensorRows(same))
    assert not differences
    assert said.startswith("padding: the batches have no ")


def test_a_loss_that_knows_no_more_padding_is_said_not_to_be_compared() -> None:
    def of_nine(model: planted.Encoder, batch: planted.Batch) -> planted.Tensor:
        assert batch["input_ids"].shape[1] == 9, "has to have 9 positions"
        return planted.summed(model, batch)

    report = check(encoder(), of_nine, batches(), stock=False)  # type: ignore[arg-type]
    assert report.kinds == ()
    assert report.not_compared[0] == "more padding: AssertionError: has to have 9 positions"
    assert report.not_compared[1].startswith("single examples without padding: AssertionError")
