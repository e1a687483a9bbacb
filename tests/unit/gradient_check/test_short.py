"""Texts of next to nothing."""

import planted
from planted import batches, encoder

from hf_accum.gradient_check.probe import Probe
from hf_accum.gradient_check.rows import TensorRows
from hf_accum.gradient_check.short import find_not_finite


def test_the_short_texts_that_spoil_a_window_are_named() -> None:
    rows = TensorRows(batches(), pad_token_id=0)
    (finding,), not_tried = find_not_finite(Probe(encoder(), planted.mean_of_each_text), rows, [])
    assert list(finding.numbers) == ["loss of a text of which no label counts"]
    assert not_tried == []
    assert find_not_finite(Probe(encoder(), planted.summed), rows, []) == ([], [])


def test_a_loss_that_cannot_do_with_a_short_text_is_said_not_to_be_tried() -> None:
    def of_bigrams(model: planted.Encoder, batch: planted.Batch) -> planted.Tensor:
        if batch["input_ids"].shape[1] < 2:
            raise ValueError("needs two tokens")
        return planted.summed(model, batch)

    rows = TensorRows(batches(False), pad_token_id=0)
    findings, (said,) = find_not_finite(Probe(encoder(), of_bigrams), rows, [])  # type: ignore[arg-type]
    assert not findings
    assert said == "a text of 1 position: ValueError: needs two tokens"
