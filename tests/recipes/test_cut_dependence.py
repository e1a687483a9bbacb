"""The question at each run's start, in whole runs: nobody is refused without a reason, and nothing is left behind."""

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from every_recipe import RECIPES, Recipe
from tiny import make_tokenizer
from transformers import AutoConfig, AutoModel
from transformers.models.bert.modeling_bert import BertEmbeddings

from hf_accum.gradient_check.forwards import Computed
from hf_accum.run import start_check

ASKED = [*RECIPES, replace(RECIPES[0], flags={"pooling": "mean"})]
"""The last one as its default model, of sentences, has it."""


class Asked(BaseException):
    """Ends a run once it was asked."""


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("recipe", ASKED, ids=[*(recipe.id for recipe in RECIPES), "mean"])
def test_the_defaults_of_recipes_are_not_refused_and_all_that_is_trained_has_a_gradient(
    recipe: Recipe,
    precision: str,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accelerator: object,
) -> None:
    found: list[object] = []
    find = start_check.find_cut_dependence

    def asked(computed: Computed, examples: Any, **how: Any) -> None:
        found.append(find(computed, examples, **how))
        found.append(without_gradient(computed, examples))
        raise Asked

    monkeypatch.setattr(start_check, "find_cut_dependence", asked)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    shared = tmp_path_factory.getbasetemp() / "recipes-asked"
    with pytest.raises(Asked):
        importlib.import_module(f"recipes.{recipe.name}").main(recipe.make_flags(shared, tmp_path / "run"))
    assert found == [None, []]


def without_gradient(computed: Computed, examples: Any) -> list[str]:
    examples = [computed.draw(example) for example in examples]
    batch = computed.make_batch(examples, max(example.length for example in examples))
    with torch.autocast("cpu", torch.bfloat16, enabled=computed.autocast is not None):
        computed.summed_loss(computed.model, batch).backward()
    return [name for name, p in computed.model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.fixture
def fnet(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose tokens see padding."""
    folder = tmp_path / "fnet"
    sizes = {"vocab_size": 44, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    AutoModel.from_config(
        AutoConfig.for_model("fnet", **sizes, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0)
    ).save_pretrained(folder)
    make_tokenizer().save_pretrained(str(folder))
    return folder


def test_a_model_that_sees_padding_is_refused_before_anything_is_written_and_can_be_allowed(
    recipe: Callable[..., Path], fnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, Any] = {"model": fnet, "lora.rank": 0, "max_steps": 2, "output_dir": tmp_path / "fnet-run"}
    with pytest.raises(SystemExit) as ended:
        recipe(**flags)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    (message,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert message.startswith("error: the gradient depends on how a window is cut: the loss of 3 texts of 6, 11, 17 ")
    assert "fnet.encoder.layer.0.fourier.self (FNetBasicFourierTransform)" in message
    assert message.endswith(
        "--micro_batch_size 1 computes each by itself; --allow_cut_dependence true trains it as it is"
    )
    assert not (tmp_path / "fnet-run").exists()

    folder = recipe("--allow_cut_dependence=true", **flags)
    said = " ".join(capsys.readouterr().out.split())
    assert "the gradient depends on how a window is cut" in said
    assert said.count(": allowed") == 1
    assert not list(folder.parent.glob("fnet-run-earlier*"))
    assert json.loads((folder / "evaluation.json").read_text())["num_examples"] > 0


def test_one_by_one_it_trains(recipe: Callable[..., Path], fnet: Path) -> None:
    folder = recipe(**{"model": fnet, "lora.rank": 0, "max_steps": 1, "micro_batch_size": 1})
    assert (folder / "evaluation.json").exists()


def test_a_model_that_counts_its_forwards_is_refused_and_its_layer_named(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a run that goes on nor a window that is run again would compute what the first one did."""
    forward = BertEmbeddings.forward

    def counting(self: Any, *inputs: Any, **named: Any) -> Any:
        self.count = getattr(self, "count", 0) + 1
        return forward(self, *inputs, **named).roll(self.count, dims=-1)

    monkeypatch.setattr(BertEmbeddings, "forward", counting)
    with pytest.raises(SystemExit) as ended:
        recipe(output_dir=tmp_path / "counting-run", max_steps=2)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "forwards change the state of the model, first in layer " in said
    assert "bert.embeddings (BertEmbeddings)" in said
    assert not (tmp_path / "counting-run").exists()
