"""A trained classifier beside simple methods, on the same rows to train on and the same held-out ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_accum.accumulation.example import Example
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import good_rows
from hf_accum.data.split import SplitData
from hf_accum.evaluation.baselines import LabelledSample, by_bag_of_words, by_vectors, figures_of
from hf_accum.files import write_json
from hf_accum.tasks.text_classification.task import TextClassification
from hf_accum.tasks.tokenization import pad, padding_of, tokenize

if TYPE_CHECKING:
    from rich.table import Table

_AT_ONCE = 32
FILE = "baselines.json"


def compare_with_baselines(
    config: RecipeConfig, data: SplitData, task: TextClassification, model: str, figures: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Compute the baselines, print them beside the run's `figures`, and write them into its folder.

    All texts are held in memory. The frozen encoder is `model` as it was before the training, its last states
    averaged over the tokens of a text.
    """
    from rich import print as show

    train, held_out = sample_of(data, task, held_out=False), sample_of(data, task, held_out=True)
    bag_of_words = figures_of(by_bag_of_words(train, held_out.texts), held_out.targets)
    encoder = FrozenEncoder(model, task, config)
    vectors = figures_of(by_vectors(train, held_out.texts, encoder.vectors_of), held_out.targets)
    found = {"TF-IDF, logistic regression": bag_of_words, "frozen encoder, logistic regression": vectors}
    write_json(Path(config.output_dir) / FILE, found)
    show(_table({"this run": {name: figures[name] for name in bag_of_words}} | found))
    return found


def sample_of(data: SplitData, task: TextClassification, held_out: bool) -> LabelledSample:
    """All rows of one side of the split, pairs of texts as one; bad ones are left out: the training told of them."""
    source = data.eval_source if held_out else data.source
    texts, targets, groups = [], [], []

    def row_of(row: Mapping[str, Any]) -> tuple[Any, int] | None:
        is_wanted = data.is_held_out(row, True) if held_out else data.is_to_train_on(row)
        return (task.prepare(row), data.group_of(row)) if is_wanted else None

    for shard in range(source.num_shards):
        for _, ((text, target), group) in good_rows(source, shard, 0, row_of, "skip", Counter()):
            texts.append(text if isinstance(text, str) else " ".join(text))
            targets.append(target)
            groups.append(group)
    return LabelledSample(texts, np.array(targets, dtype=np.int64), groups)


class FrozenEncoder:
    """A pretrained encoder in eval mode, as it is."""

    def __init__(self, model: str, task: TextClassification, config: RecipeConfig) -> None:
        from transformers import AutoModel

        from hf_accum.models.loading import load_model

        how: dict[str, Any] = {"max_length": config.max_length, "trust": config.trust}
        self._model = load_model(AutoModel, model, task.tokenizer, **how).model.eval()
        self._task = task

    @torch.no_grad()
    def vectors_of(self, texts: Sequence[str]) -> np.ndarray:
        """The mean of the last states of each text, (num_texts, width) in float32."""
        from hf_accum.models.pooled_classifier import pool_states

        tokenizer = self._task.tokenizer
        assert tokenizer is not None
        tokens = tokenize(tokenizer, texts, self._task.max_length)
        examples = [Example(str(i), len(ids), 1.0, {"input_ids": ids}) for i, (ids, _) in enumerate(tokens)]
        examples.sort(key=lambda example: example.length)
        found: list[np.ndarray] = [np.empty(0)] * len(examples)
        for start in range(0, len(examples), _AT_ONCE):
            some = examples[start : start + _AT_ONCE]
            inputs = pad(some, padding_of(tokenizer))
            states = self._model(**inputs).last_hidden_state
            vectors = pool_states(states, inputs.get("attention_mask"), "mean").numpy()
            for example, vector in zip(some, vectors, strict=True):
                found[int(example.id)] = vector
        return np.stack(found)


def _table(rows: Mapping[str, Mapping[str, float]]) -> "Table":
    from rich.table import Table

    table = Table(title="the same held-out examples")
    table.add_column("method")
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for method, figures in rows.items():
        table.add_row(method, *(f"{value:.3f}" for value in figures.values()))
    return table
