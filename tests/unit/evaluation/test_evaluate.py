"""Evaluation over ranks: each example once, the figures those of one plain pass over all of them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import ThreadRanks, on_ranks, run_ranks
from tiny import CONFIGS, WORDS, make_tokenizer
from torch import Tensor
from transformers import BertForSequenceClassification

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import Source
from hf_accum.data.stream import Split, WindowStream
from hf_accum.distributed.ranks import OneRank, RankFailed, Ranks
from hf_accum.errors import OutOfMemory
from hf_accum.evaluation.evaluate import Metric, Metrics, evaluate_model
from hf_accum.evaluation.judge import Predicted
from hf_accum.tasks.labels import LabelColumn, Problem
from hf_accum.tasks.text_classification.task import TextClassification, build_objective

sk: Any = sklearn.metrics  # its inline types refuse what its documentation allows
NAMES = ("a", "b", "c")
TOKENIZER = make_tokenizer()
SINGLE: Problem = "single_label_classification"
MULTI: Problem = "multi_label_classification"


def make_task(problem: Problem = SINGLE, **how: Any) -> TextClassification:
    labels = LabelColumn("label", problem, NAMES, codes=tuple(map(str, range(len(NAMES)))))
    return TextClassification("text", labels, build_objective(labels, **how), TOKENIZER, 12)


def make_model(dropout: float = 0.5) -> BertForSequenceClassification:
    """With heavy dropout: if it were left on, no figure would be right."""
    config: Any = copy.deepcopy(CONFIGS["bert"])
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(config, name, dropout)
    config.num_labels = 3
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight)  # so that predictions differ
    return model.train()


MODEL = make_model()


def compact(task: Any) -> Callable[[torch.nn.Module, Any], Predicted]:
    """Predictions as the shipped metrics have them: class indices, or probabilities of labels."""

    def predict(model: torch.nn.Module, inputs: Any) -> Predicted:
        found = task.predict(model, inputs)
        is_several = found.references.ndim == 2
        small = found.predictions.sigmoid() if is_several else found.predictions.argmax(-1).int()
        return replace(found, predictions=small)

    return predict


def metrics_of(task: TextClassification) -> list[Metric]:
    name = "multi_label" if task.labels.problem == MULTI else "single_label"
    return [Metric(name, {"label_names": NAMES})]


def make_rows(num_rows: int, problem: Problem, seed: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "text": " ".join(random.choice(WORDS, random.integers(1, 15))),
            "label": int(random.integers(0, 3))
            if problem == SINGLE
            else np.flatnonzero(random.random(3) < 0.4).tolist(),
        }
        for _ in range(num_rows)
    ]


def in_shards(rows: Sequence[Any], sizes: Sequence[int]) -> Source:
    assert sum(sizes) == len(rows)
    ends = np.cumsum(sizes)
    shards = [rows[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    names = tuple(f"shard-{index}" for index in range(len(shards)))
    return Source(names, lambda shard, start: iter(list(enumerate(shards[shard]))[start:]), {})


def evaluate_on(
    ranks: Ranks,
    source: Source,
    task: TextClassification,
    *,
    split: Split = "examples",
    micro_batch_size: int = 4,
    model: torch.nn.Module | None = None,
) -> Metrics:
    stream = WindowStream(
        source,
        task.prepare,
        task.encode,
        ranks=ranks,
        effective_batch_size=5 * ranks.count,
        seed=0,
        split=split,
        shuffle_block_size=1,
    )
    return evaluate_model(
        copy.deepcopy(MODEL) if model is None else model,
        stream,
        task.collate,
        compact(task),
        metrics_of(task),
        ranks=ranks,
        cutter=Cutter(WorkingCapacity(Capacity(micro_batch_size))),
    )


def plain_logits(rows: Sequence[dict[str, Any]]) -> Tensor:
    """One text after the other through the model."""
    model = copy.deepcopy(MODEL).eval()
    texts = [TOKENIZER(row["text"], truncation=True, max_length=12, return_tensors="pt") for row in rows]
    with torch.no_grad():
        return torch.cat([model(**text).logits for text in texts])


class OnMps(Tensor):
    """Of a device that has no float64."""

    def double(self, *_: Any) -> Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        return self.as_subclass(Tensor)


def test_losses_are_summed_in_float64_on_the_cpu_alone() -> None:
    rows = make_rows(7, SINGLE, 0)
    task = make_task()
    expected = evaluate_on(OneRank(), in_shards(rows, [7]), task)

    def predict(model: torch.nn.Module, inputs: Any) -> Predicted:
        found = task.predict(model, inputs)
        return replace(found, loss=found.loss.as_subclass(OnMps))

    on_mps: Any = SimpleNamespace(
        **{name: getattr(task, name) for name in ("prepare", "encode", "collate", "labels")}
    )
    on_mps.predict = predict
    assert evaluate_on(OneRank(), in_shards(rows, [7]), on_mps) == expected


sizes = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)


@settings(max_examples=12)
@given(
    sizes=sizes,
    num_ranks=st.integers(1, 3),
    split=st.sampled_from(("examples", "shards")),
    micro_batch_size=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_figures_are_those_of_all_examples_once(
    sizes: list[int], num_ranks: int, split: Split, micro_batch_size: int, seed: int
) -> None:
    """Also where a rank has no example at all. Macro-F1 and class weights tell a lost example from a repeated one."""
    rows = make_rows(sum(sizes), SINGLE, seed)
    logits, truth = plain_logits(rows), torch.tensor([row["label"] for row in rows])
    task = make_task(class_weights=[0.5, 1.0, 3.0])
    everyone = run_ranks(
        num_ranks,
        lambda ranks: evaluate_on(
            ranks, in_shards(rows, sizes), task, split=split, micro_batch_size=micro_batch_size
        ),
    )
    predicted = logits.argmax(-1)
    for figures in everyone:
        assert figures == everyone[0]
        assert figures["num_examples"] == len(rows)
        assert figures["loss"] == pytest.approx(
            float(F.cross_entropy(logits, truth, weight=torch.tensor([0.5, 1.0, 3.0]))), rel=1e-5
        )
        assert figures["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
        assert figures["macro_f1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro", zero_division=0))
        support = [row["support"] for row in figures["per_class"].values()]
        assert support == torch.bincount(truth, minlength=3).tolist()


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_several_labels_over_ranks(num_ranks: int) -> None:
    rows = make_rows(23, MULTI, seed=5)
    logits, truth = plain_logits(rows), torch.zeros(23, 3)
    for index, row in enumerate(rows):
        truth[index, row["label"]] = 1
    task = make_task(MULTI)
    (figures, *_) = run_ranks(num_ranks, lambda ranks: evaluate_on(ranks, in_shards(rows, [20, 3]), task))
    assert figures["loss"] == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, truth)), rel=1e-5)
    scores = logits.sigmoid().numpy()
    assert figures["macro_auroc"] == pytest.approx(sk.roc_auc_score(truth.numpy(), scores, average="macro"))
    assert figures["micro_f1"] == pytest.approx(
        sk.f1_score(truth.numpy(), (scores >= 0.5).astype(int), average="micro", zero_division=0)
    )


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in_and_without_gradients(is_training: bool) -> None:
    model = copy.deepcopy(MODEL).train(is_training)
    rows = make_rows(9, SINGLE, seed=1)
    first = evaluate_on(OneRank(), in_shards(rows, [9]), make_task(), model=model)
    assert model.training is is_training
    assert model.bert.training is is_training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert evaluate_on(OneRank(), in_shards(rows, [9]), make_task(), model=model) == first


def test_the_model_is_left_in_its_mode_after_an_error_too() -> None:
    model = copy.deepcopy(MODEL)
    rows = [*make_rows(7, SINGLE, seed=1), {"text": "w1", "label": 9}]
    with pytest.raises(ValueError, match="shard-0, row 8: field 'label': label '9' is out of range"):
        evaluate_on(OneRank(), in_shards(rows, [8]), make_task(), model=model)
    assert model.training


@pytest.mark.parametrize("split", ["examples", "shards"])
def test_a_bad_row_ends_the_evaluation_on_all_ranks(split: Split) -> None:
    rows = [*make_rows(7, SINGLE, seed=1), {"text": "", "label": 1}]
    outcomes = on_ranks(2, lambda ranks: evaluate_on(ranks, in_shards(rows, [4, 4]), make_task(), split=split))
    named = [isinstance(o, ValueError) and "shard-1, row 4: field 'text': empty text" in str(o) for o in outcomes]
    assert any(named)
    assert all(is_named or isinstance(o, RankFailed) for is_named, o in zip(named, outcomes, strict=True))


def test_a_metric_that_fails_on_the_first_rank_ends_all() -> None:
    class Broken:
        name = "broken"

        def compute(self, *_: Any) -> Any:
            raise ValueError("metric 'broken' cannot take this")

    rows = make_rows(6, SINGLE, seed=1)

    def work(ranks: ThreadRanks) -> Metrics:
        task = make_task()
        stream = WindowStream(
            in_shards(rows, [6]), task.prepare, task.encode, ranks=ranks, effective_batch_size=6, seed=0
        )
        model: Any = copy.deepcopy(MODEL)
        metrics: Any = [Broken()]
        return evaluate_model(
            model,
            stream,
            task.collate,
            compact(task),
            metrics,
            ranks=ranks,
            cutter=Cutter(WorkingCapacity(Capacity(2))),
        )

    first, second = on_ranks(2, work)
    assert str(first) == "metric 'broken' cannot take this"
    assert isinstance(second, RankFailed)
    assert "metric 'broken' cannot take this" in str(second)


def test_ranks_exchange_predictions_and_numbers_not_texts() -> None:
    """What is handed round for 40 examples is some kilobytes."""
    sent: list[Any] = []

    class Spy(OneRank):
        def gather_objects(self, value: Any) -> list[Any]:
            sent.append(value)
            return [value]

    evaluate_on(Spy(), in_shards(make_rows(40, SINGLE, seed=1), [40]), make_task())
    (arrays,) = [columns for value in sent if isinstance(value, tuple) and len(value) == 3 for columns in value[1:2]]
    assert [(array.dtype.name, array.shape) for array in arrays] == [
        ("str128", (40,)),  # ids, of four letters
        ("float64", (40,)),  # weights
        ("uint64", (40,)),  # groups
        ("float64", (40,)),  # losses, where they are asked for
        ("int32", (40,)),
        ("int64", (40,)),
    ]


def evaluate_on_small_device(
    most: int, capacity: Capacity, rows: list[dict[str, Any]], said: str = "out of memory: made up"
) -> tuple[Metrics, list[int]]:
    """With room for `most` examples at once: the figures, and the sizes of all batches tried."""
    task = make_task(class_weights=[0.5, 1.0, 3.0])
    stream = WindowStream(
        in_shards(rows, [len(rows)]), task.prepare, task.encode, ranks=OneRank(), effective_batch_size=8, seed=0
    )
    model: Any = copy.deepcopy(MODEL)
    tried: list[int] = []

    def run_out(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tried.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise RuntimeError(said)

    model.classifier.register_forward_pre_hook(run_out)  # after all that needs memory
    try:
        figures = evaluate_model(
            model,
            stream,
            task.collate,
            compact(task),
            metrics_of(task),
            ranks=OneRank(),
            cutter=Cutter(WorkingCapacity(capacity)),
        )
    finally:
        assert model.training
    return figures, tried


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_a_batch_that_runs_out_of_memory_is_evaluated_in_smaller_ones(most: int) -> None:
    """The same figures, each example once; the capacity, which the training uses too, stays as it is."""
    rows = [{**row, "text": " ".join(WORDS[:5])} for row in make_rows(4, SINGLE, seed=3)]  # of one length
    rows += make_rows(23, SINGLE, seed=4)
    capacity = Capacity(8)
    expected, all_at_once = evaluate_on_small_device(8, capacity, rows)
    assert all_at_once == [8, 8, 8, 3]
    figures, tried = evaluate_on_small_device(most, capacity, rows)
    assert tried[0] == 8
    assert sum(size for size in tried if size <= most) == len(rows) == figures["num_examples"]
    assert len([size for size in tried if size > most]) < len(tried) / 2  # what was found out is remembered
    logits, truth = plain_logits(rows), torch.tensor([row["label"] for row in rows])
    weighted = F.cross_entropy(logits, truth, weight=torch.tensor([0.5, 1.0, 3.0]))
    assert figures.pop("loss") == pytest.approx(float(weighted), rel=1e-5)
    assert expected.pop("loss") == pytest.approx(float(weighted), rel=1e-5)
    assert figures == expected
    assert capacity == Capacity(8)
    assert evaluate_on_small_device(8, capacity, rows)[1] == all_at_once


def test_a_single_example_too_large_to_evaluate_is_said() -> None:
    with pytest.raises(
        OutOfMemory, match=r"^evaluation: a single example of \d+ tokens does not fit .* `max_length`"
    ):
        evaluate_on_small_device(0, Capacity(4), make_rows(6, SINGLE, seed=3))


def test_what_a_library_says_of_memory_and_of_other_things_is_tried_in_smaller_batches_and_told_as_it_is() -> None:
    rows, said = make_rows(6, SINGLE, seed=3), "could not create a primitive"
    figures, tried = evaluate_on_small_device(2, Capacity(4), rows, said)
    assert (figures["num_examples"], max(tried)) == (6, 4)
    with pytest.raises(RuntimeError, match=f"^{said}"):
        evaluate_on_small_device(0, Capacity(4), rows, said)
