"""A trained head: whether it tells the labels that are wanted, and a new one in its place."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import HEADS, load_classifier, save_base

from hf_accum.errors import UserError
from hf_accum.models.heads import check_labels, other_labels, renew_head

WANTED = {0: "eye", 1: "heart"}


@pytest.mark.parametrize(
    ("of_head", "expected"),
    [
        ({0: "eye", 1: "heart"}, None),
        ({"1": "heart", "0": "eye"}, None),  # as JSON has them
        ({0: "LABEL_0", 1: "LABEL_1"}, None),  # transformers' own, which tell nothing
        (None, None),
        ({0: "heart", 1: "eye"}, ["heart", "eye"]),
        ({0: "eye", 1: "ear"}, ["eye", "ear"]),
        ({str(i): str(i) for i in range(11)}, [str(i) for i in range(11)]),  # by number, not as texts
    ],
)
def test_labels_are_others_by_name_or_order(of_head: Any, expected: list[str] | None) -> None:
    assert other_labels(of_head, WANTED) == expected


def test_a_head_of_other_labels_is_refused_with_what_to_do() -> None:
    check_labels("m", WANTED, WANTED, "")
    with pytest.raises(UserError, match="give `labels` in the order of the head, or ask me"):
        check_labels("m", {0: "heart", 1: "eye"}, WANTED, ", or ask me")
    with pytest.raises(UserError, match=r"its head tells 'eye', 'ear', .* give the model that it was made from"):
        check_labels("m", {0: "eye", 1: "ear"}, WANTED, "")


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_a_head_is_drawn_anew_and_nothing_else(architecture: str, tmp_path: Path) -> None:
    model = load_classifier(save_base(tmp_path, architecture)).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    renewed = renew_head(model)
    assert {name.partition(".")[0] for name in renewed} == set(HEADS[architecture])
    for name, parameter in model.named_parameters():
        assert (parameter == 7.0).all() == (name not in renewed), name
    weights = [p for name, p in model.named_parameters() if name in renewed and name.endswith("weight")]
    assert all(0.1 < float(w.detach().std()) < 0.6 for w in weights)  # initializer_range is 0.3
