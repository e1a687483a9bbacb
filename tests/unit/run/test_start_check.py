"""Who is refused, who is allowed and what is said of it, on all ranks together. Whole runs: tests/recipes."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pair_cases import make_encoder, make_pairs
from thread_ranks import ThreadRanks, on_ranks

from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.grad_cache import InBatchNegatives
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.ranks import OneRank, Ranks
from hf_accum.errors import RankFailed, UserError
from hf_accum.gradient_check.cut_dependence import Fault
from hf_accum.gradient_check.forwards import CannotCheck, Computed
from hf_accum.run import start_check
from hf_accum.run.start_check import refuse_cut_dependence
from hf_accum.tasks.retrieval.task import TextRetrieval
from hf_accum.tuner.workload import workload_of

CPU = torch.device("cpu")
FAULT = Fault("losses differ", "padding reaches the result", "`micro_batch_size 1` computes each by itself")
TASK = TextRetrieval("query", "document", SimpleNamespace(pad_token_id=0), InBatchNegatives(), 12)  # type: ignore[arg-type]


def pairs(number: int) -> list[Example]:
    """Whose tokens are arrays, as those of a tokenizer are here."""

    def with_array(text: Example) -> Example:
        return replace(text, features={**text.features, "input_ids": np.array(text.features["input_ids"])})

    return [replace(pair, parts=tuple(map(with_array, pair.parts))) for pair in make_pairs(number)]


def refuse(ranks: Ranks | None = None, precision: str = "no", draw: Any = None, **flags: Any) -> list[str]:
    config = RecipeConfig(**flags)
    stream: Any = SimpleNamespace(first_examples=pairs)
    workload = workload_of(make_encoder(), TASK, config, precision)
    return refuse_cut_dependence(config, workload, TASK, stream, draw, Cutter.of(4), ranks or OneRank(), CPU)


def finding(monkeypatch: pytest.MonkeyPatch, found: Fault | Exception | None) -> list[tuple[Computed, Any, Any]]:
    """Have the check find that; returns what it is asked."""
    asked: list[tuple[Computed, Any, Any]] = []

    def find(computed: Computed, examples: Any, **how: Any) -> Fault | None:
        asked.append((computed, examples, how))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(start_check, "find_cut_dependence", find)
    return asked


def test_a_fault_is_refused_with_its_cause_and_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    finding(monkeypatch, FAULT)
    with pytest.raises(UserError) as refused:
        refuse()
    assert str(refused.value) == (
        "the gradient depends on how a window is cut: losses differ: padding reaches the result; "
        "`micro_batch_size 1` computes each by itself; `allow_cut_dependence true` trains it as it is"
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, []),
        (FAULT, [f"{FAULT}: allowed"]),
        (CannotCheck("could not be found out"), ["could not be found out"]),
    ],
)
def test_what_is_allowed_or_not_known_is_said(
    monkeypatch: pytest.MonkeyPatch, found: Fault | Exception | None, said: list[str]
) -> None:
    finding(monkeypatch, found)
    assert refuse(allow_cut_dependence=True) == said


def test_all_ranks_refuse_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(computed: Computed, examples: Any, **how: Any) -> Fault | None:
        return FAULT if computed.max_length == 12 and next(found) else None

    found = iter([True, False])
    monkeypatch.setattr(start_check, "find_cut_dependence", find)

    def work(ranks: ThreadRanks) -> list[str]:
        return refuse(ranks)

    outcomes = on_ranks(2, work)
    assert {type(outcome) for outcome in outcomes} == {RankFailed, UserError}


def test_the_model_is_asked_as_the_run_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = finding(monkeypatch, None)
    drawn: list[tuple[str, int | None]] = []

    def draw(example: Example, epoch: int | None) -> Example:
        drawn.append((example.id, epoch))
        return example

    refuse(dropout=0.0, precision="fp16", draw=draw)
    refuse()
    (computed, examples, how), (plain, _, how_else) = asked
    assert [text.id for text in examples] == [text.id for text in inputs_of(make_pairs(3))]
    assert (how["without_dropout"], how_else["without_dropout"]) == (True, False)
    assert computed.loss_scale > 1 == plain.loss_scale
    assert computed.autocast is not None
    assert plain.autocast is None
    assert (computed.num_examples(12), computed.padded(7), computed.max_length, computed.vary) == (4, 7, 12, True)
    computed.draw(examples[0])
    assert drawn == [(examples[0].id, 0)]


def test_a_contrastive_loss_stands_for_a_sum_over_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = finding(monkeypatch, None)
    refuse()
    ((computed, examples, _),) = asked
    model = computed.model.eval()

    def loss(*texts: Example) -> float:
        batch = computed.make_batch(texts, max(text.length for text in texts))
        return float(computed.summed_loss(model, batch).detach())

    assert loss(*examples) == pytest.approx(sum(map(loss, examples)), rel=1e-5)
    assert len({round(loss(text), 4) for text in examples}) > 1
    monkeypatch.undo()
    assert refuse() == []
