"""The own loss of a head of a folder."""

from pathlib import Path

import pytest
from tiny import save_base
from transformers import AutoModelForCausalLM

from hf_accum.cli.head_check import check_head
from hf_accum.errors import UserError

pytestmark = pytest.mark.usefixtures("no_network")


def test_a_causal_model_divides_by_the_count(tmp_path: Path) -> None:
    report = check_head(save_base(tmp_path / "m", "llama", auto_class=AutoModelForCausalLM), "causal_lm")
    assert report.ok
    assert report.notes[0] == "made-up rows"
    assert report.stock[0].norm_ratio == pytest.approx(1.0, abs=0.05)


def test_no_model_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has to be a local folder, or an id of the hub"):
        check_head(str(tmp_path), "causal_lm")
