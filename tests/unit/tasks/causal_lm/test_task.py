"""Causal language modelling: the model's own loss and gradient however windows are cut; padding changes nothing."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from drawn_by_hand import interval_by_hand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thread_ranks import run_ranks
from tiny import CONFIGS, VOCAB_SIZE, make_decoder_config, make_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from window_cases import assert_window_has_gradient_of

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example, Origin
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import Source
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.tasks.causal_lm.data import Passage
from hf_accum.tasks.causal_lm.task import CausalTexts, check_causal
from hf_accum.tasks.language_modeling.chunked_loss import (
    ChunkedCrossEntropy,
    stop_before_output_layer,
    with_output_layer,
)

IGNORED = -100  # of transformers


@pytest.mark.parametrize("model_type", ["llama", "biogpt", "gpt2", "gpt_neox", "mamba", "bart", "mixtral", "gemma2"])
def test_models_that_see_no_later_token_are_taken(model_type: str) -> None:
    more = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "decoder_attention_heads": 2}
    config = make_decoder_config(model_type, **more if model_type == "bart" else {})
    check_causal(AutoModelForCausalLM.from_config(config).train(), "it")


@pytest.mark.parametrize("knows_it", [True, False])
@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_an_encoder_is_refused_unless_it_is_one_that_reads_forwards(
    name: str, knows_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its config, and by what its logits are made of."""
    names = "transformers.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES"
    if not knows_it:
        monkeypatch.setattr(names, {})
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).train()
    with pytest.raises(ValueError, match=f"`model` some/encoder: .*this one .{name}. does; recipes.medical_mlm"):
        check_causal(model, "some/encoder")
    assert model.training
    with torch.device("meta"):
        without_weights = AutoModelForCausalLM.from_config(CONFIGS[name])
    if knows_it:
        with pytest.raises(ValueError, match="has to be a causal language model"):
            check_causal(without_weights, "some/encoder")
    config = copy.deepcopy(CONFIGS[name])
    config.is_decoder = True
    model = AutoModelForCausalLM.from_config(config)
    check_causal(model, "a decoder")
    stop_before_output_layer(model)
    check_causal(model, "a decoder")


def make_model(architecture: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = CONFIGS[architecture]
    return AutoModelForCausalLM.from_config(config).double().eval()


def make_passages(lengths: Sequence[int], seed: int = 0) -> list[Passage]:
    """Random tokens (the padding token among them); about half of them, and one at least, are predicted."""
    random = np.random.default_rng(seed)
    passages = []
    for length in lengths:
        is_target = random.random(length) < 0.5
        is_target[0], is_target[-1] = False, True
        passages.append(Passage(random.integers(VOCAB_SIZE, size=length).astype(np.int32), is_target))
    return passages


def task_of(model: nn.Module, chunk_size: int) -> CausalTexts:
    stop_before_output_layer(model)
    tokenizer: Any = SimpleNamespace(pad_token_id=3)
    return CausalTexts(tokenizer, ChunkedCrossEntropy(chunk_size), max_length=16)


def encoded(task: CausalTexts, passages: Sequence[Passage]) -> list[Example]:
    return task.encode([(f"0:{index}", passage) for index, passage in enumerate(passages)])


def own_loss(model: Any, passages: Sequence[Passage], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The model's own mean loss of one unsplit batch, padded by hand with token 0, in float64."""
    longest = max(len(passage.tokens) for passage in passages)
    ids, labels = torch.zeros(len(passages), longest).long(), torch.full((len(passages), longest), IGNORED)
    mask = torch.zeros_like(ids)
    for row, passage in enumerate(passages):
        length = len(passage.tokens)
        tokens = torch.from_numpy(passage.tokens.astype(np.int64))
        ids[row, :length], mask[row, :length] = tokens, 1
        labels[row, :length] = tokens.where(torch.from_numpy(passage.is_target.copy()), IGNORED)
    with with_output_layer(model), monkeypatch.context() as patched:
        patched.setattr(Tensor, "float", lambda tensor: tensor)  # it would round the logits
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss


@pytest.mark.parametrize("architecture", ["llama", "biogpt"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=9),
    micro_batch_size=st.integers(1, 9),
    chunk_size=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_cut_and_any_chunk_give_the_model_s_own_gradient_of_the_unsplit_batch(
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    lengths: list[int],
    micro_batch_size: int,
    chunk_size: int,
    seed: int,
) -> None:
    model, passages = make_model(architecture), make_passages(lengths, seed)
    task = task_of(model, chunk_size)
    expected = own_loss(model, passages, monkeypatch)
    examples = encoded(task, passages)
    assert sum(example.weight for example in examples) == sum(int(passage.is_target.sum()) for passage in passages)
    assert_window_has_gradient_of(expected, accelerator, model, task, examples, micro_batch_size)


def test_a_batch_holds_what_is_predicted_from_what() -> None:
    task = task_of(make_model("llama"), 4)
    passages = make_passages([5, 9, 2])
    inputs, targets = task.collate(encoded(task, passages), length=12)
    assert inputs["input_ids"].shape == (3, 12)
    assert inputs.keys() == {"input_ids"}  # a token sees none behind it, and so no padding
    for row, passage in enumerate(passages):
        assert inputs["input_ids"][row, : len(passage.tokens)].tolist() == passage.tokens.tolist()
        assert (inputs["input_ids"][row, len(passage.tokens) :] == 3).all()
    pairs = [
        (row * 12 + place - 1, int(passage.tokens[place]))
        for row, passage in enumerate(passages)
        for place in range(len(passage.tokens))
        if passage.is_target[place]
    ]
    assert list(zip(targets.positions.tolist(), targets.tokens.tolist(), strict=True)) == pairs


@pytest.mark.parametrize("architecture", ["llama", "biogpt"])
def test_padding_changes_no_token_s_logits(architecture: str) -> None:
    """Positions count from the text's first token, and padding is seen by none."""
    model = make_model(architecture)
    task = task_of(model, 4)
    examples = encoded(task, make_passages([3, 11, 7]))
    with torch.inference_mode(), with_output_layer(model):
        padded = model(**task.collate(examples, 14)[0]).logits
        for row, example in enumerate(examples):
            alone = model(input_ids=torch.from_numpy(example.features["input_ids"].astype(np.int64))[None]).logits[0]
            torch.testing.assert_close(padded[row, : example.length], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_perplexity_is_that_of_all_tokens_on_any_number_of_ranks(num_ranks: int) -> None:
    model, passages = make_model("llama"), make_passages(np.random.default_rng(0).integers(2, 14, 23).tolist())
    task = task_of(model, 5)
    losses, num_right = [], 0
    with torch.inference_mode(), with_output_layer(model):
        for passage in passages:
            tokens = torch.from_numpy(passage.tokens.astype(np.int64))
            targets = torch.from_numpy(np.flatnonzero(passage.is_target))
            logits = model(input_ids=tokens[None]).logits[0, targets - 1]
            losses.append(F.cross_entropy(logits, tokens[targets], reduction="none"))
            num_right += int((logits.argmax(-1) == tokens[targets]).sum())
    mean = torch.cat(losses).mean()

    def evaluate(ranks: Ranks) -> dict[str, Any]:
        source = Source(("memory",), lambda _, start: ((i, {"i": i}) for i in range(start, len(passages))), {})
        stream = WindowStream(
            source,
            lambda row: passages[row["i"]],
            task.encode,
            ranks=ranks,
            effective_batch_size=8,
            seed=0,
            shuffle_block_size=1,
        )
        return task.evaluate(model, stream, ranks=ranks, cutter=Cutter(WorkingCapacity(Capacity(3))))

    for figures in run_ranks(num_ranks, evaluate):
        assert figures["num_examples"] == len(passages)
        assert figures["num_tokens"] == sum(map(len, losses))
        assert figures["loss"] == pytest.approx(float(mean), rel=1e-12)
        assert figures["perplexity"] == pytest.approx(float(mean.exp()), rel=1e-12)
        assert figures[CausalTexts.accuracy] == num_right / sum(map(len, losses))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_at_the_end_each_text_is_told_and_intervals_are_of_texts_drawn_by_group(
    tmp_path: Path, num_ranks: int
) -> None:
    """Two texts of a patient; against a plain loop over the drawings, from what stands in predictions.jsonl."""
    model, passages = make_model("llama"), make_passages([9, 4, 13, 2, 7, 11, 5, 6])
    task = replace(task_of(model, 5), tokenizer=make_tokenizer())

    def encode(rows: Sequence[tuple[str, Passage]]) -> list[Example]:
        examples = task.encode(rows)
        return [replace(one, origin=Origin(None, int(one.id.split(":")[1]) // 2)) for one in examples]

    def evaluate(ranks: Ranks) -> dict[str, Any]:
        source = Source(("a.jsonl",), lambda _, start: ((i, {"i": i}) for i in range(start, len(passages))), {})
        how: dict[str, Any] = {"ranks": ranks, "effective_batch_size": 3, "seed": 0, "shuffle_block_size": 1}
        stream = WindowStream(source, lambda row: passages[row["i"]], encode, **how)
        cutter = Cutter(WorkingCapacity(Capacity(3)))
        return task.evaluate(model, stream, ranks=ranks, cutter=cutter, folder=tmp_path)

    figures = run_ranks(num_ranks, evaluate)[0]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"a.jsonl:{number}" for number in range(1, 9)]
    assert [line["num_tokens"] for line in lines] == [int(passage.is_target.sum()) for passage in passages]

    def mean(values: list[float], indices: list[int]) -> float:
        return sum(values[i] for i in indices) / sum(lines[i]["num_tokens"] for i in indices)

    losses = [line["loss"] * line["num_tokens"] for line in lines]
    groups = [number // 2 for number in range(8)]
    assert figures["bootstrap"]["num_groups"] == 4
    by_hand = {
        "loss": lambda indices: mean(losses, indices),
        "perplexity": lambda indices: float(np.exp(mean(losses, indices))),
        task.accuracy: lambda indices: mean([line["num_right"] for line in lines], indices),
    }
    assert set(figures["confidence_intervals"]) == set(by_hand)
    for name, figure in by_hand.items():
        expected = interval_by_hand(groups, figure)
        assert figures["confidence_intervals"][name] == pytest.approx(expected, rel=1e-5), name
    worst = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in worst] == sorted((line["loss"] for line in lines), reverse=True)
    assert all(line["text"] for line in worst)
