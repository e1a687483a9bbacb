"""A recipe's own model, task and rows, checked."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.losses import IGNORE
from hf_accum.accumulation.part_cache import LinearLoss
from hf_accum.cli.handed_over import Handed, handed_over
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.stream import WindowStream
from hf_accum.errors import UserError
from hf_accum.gradient_check.blocks import keep_few_blocks
from hf_accum.gradient_check.check import check_rows
from hf_accum.gradient_check.collated import CollatedRows, of_piece
from hf_accum.gradient_check.report import Report
from hf_accum.models.trainable import load_trainable
from hf_accum.tasks.causal_lm.task import CausalTexts
from hf_accum.tasks.language_modeling.chunked_loss import Targets
from hf_accum.tasks.retrieval.task import TextRetrieval
from hf_accum.tasks.task import PoolsParts
from hf_accum.tuner.workload import workload_of

NUM_EXAMPLES = 8
LONGEST = 24
"""Tokens of an example that is chosen, if there are such."""
_MAX_LENGTH = 64
_WINDOW, _WINDOW_OVERLAP = 10, 2
_RESOLUTION = 128
_LOOKED_AT = 128  # examples, of which those are chosen


def check_recipe(module: ModuleType, config: RecipeConfig, name: str) -> Report:
    """Check a recipe's loss on its own model and rows.

    Raises:
        UserError: as the recipe does before its training.
    """
    with TemporaryDirectory() as folder:
        handed = handed_over(module, _shortened(config, Path(folder) / "run"))
        notes = (
            [] if config.quantization == "none" else ["checked without quantization: 4-bit weights have no float64"]
        )
        trainable = load_trainable(handed.spec, handed.processor, handed.config, device=torch.device("cpu"))
        model, task = trainable.model, handed.task
        workload_of(model, task, handed.config).leave_out_unused_adapters(handed.config.lora, torch.device("cpu"))
        if few := keep_few_blocks(model):
            notes.append(few)
        examples = _chosen(handed)
        texts = inputs_of(examples)
        vary = task.lengths.vary
        if vary:
            notes.append(
                f"short rows were chosen, of {min(e.length for e in texts)} to {max(e.length for e in texts)} tokens"
            )
        elif isinstance(handed.config, RecipeConfig) and hasattr(handed.config, "resolution"):
            notes.append(f"images of {getattr(handed.config, 'resolution')} pixels a side")  # noqa: B009
        summed_loss, collate, labels = task.summed_loss, task.collate, None
        if isinstance(task, TextRetrieval):
            collate = _with_gradients(task, model, examples)
            notes.append(
                "in-batch negatives: checked is the product with the gradient by the vectors, which is trained on"
            )
        elif len(texts) > len(examples) and isinstance(task, PoolsParts):
            collate = _with_linear_losses(task, model, examples)
            notes.append(
                "long texts in windows: checked is the linear loss by the windows' outputs, which is trained on"
            )
        else:
            labels = _labelled(task, collate(texts, max(example.length for example in texts)))
        rows = CollatedRows(texts, collate, vary=vary, most_length=handed.task.max_length)
        return check_rows(
            model,
            of_piece(summed_loss),
            rows,
            stock_model=None if labels is None else _with_own_loss(model),
            stock_batch=labels,
            deterministic=config.dropout == 0,
            name=name,
            notes=notes,
        )


def _shortened(config: RecipeConfig, output_dir: Path) -> RecipeConfig:
    """The same flags, with short texts and small images, no quantisation, and a folder that is not kept."""
    config = replace(config, output_dir=str(output_dir), quantization="none", trackers=[])
    if hasattr(config, "resolution"):
        return replace(config, resolution=min(_RESOLUTION, config.resolution))  # type: ignore[attr-defined]
    # Some rows may have no place in so few tokens, as an answer behind a long prompt: others are looked at.
    shorter: dict[str, Any] = {"max_length": min(_MAX_LENGTH, config.max_length), "on_bad_row": "skip"}
    if getattr(config, "long_texts", "truncate") == "windows":  # so that short texts have several
        shorter |= {"max_length": min(_WINDOW, config.max_length), "window_overlap": _WINDOW_OVERLAP}
    if hasattr(config, "overlap"):
        shorter |= {"overlap": None}  # so many as go with short texts
    with suppress(UserError):  # where other flags go with it
        return replace(config, **shorter)
    return config


def _chosen(handed: Handed) -> list[Example]:
    """Some of the first examples, of uneven lengths, none long if there are enough short ones."""
    config, data, task, draw = handed.config, handed.data, handed.task, handed.draw
    stream = WindowStream(
        data.source,
        lambda row: task.prepare(row) if data.is_to_train_on(row) else None,
        task.encode,
        ranks=handed.run.ranks,
        effective_batch_size=NUM_EXAMPLES,
        seed=config.seed,
        on_bad_row=config.on_bad_row,
        draw=None if draw is None else lambda example, epoch: draw(example, epoch),
        shuffle_block_size=min(config.shuffle_block_size, 1_000),
        prefetch_windows=1,
    )
    found = [
        example
        for window in islice(stream, _LOOKED_AT // NUM_EXAMPLES)
        for example in window.examples
        if example.weight > 0
    ]
    if len(found) < 4:
        raise UserError(f"{len(found)} rows to train on: have to be at least 4 for a check; or --made_up")
    if not task.lengths.vary:
        return found[:4]
    in_order = sorted(found, key=lambda example: example.length)
    longest = 3 * LONGEST if isinstance(task, PoolsParts) else LONGEST  # of a text's windows together
    short = [example for example in in_order if example.length <= longest] or in_order
    if len(short) < NUM_EXAMPLES:
        return in_order[:NUM_EXAMPLES]
    return [short[place * (len(short) - 1) // (NUM_EXAMPLES - 1)] for place in range(NUM_EXAMPLES)]


def _with_gradients(task: TextRetrieval, model: nn.Module, pairs: Sequence[Example]) -> Any:
    """Collates texts with the gradient of the loss of all pairs by their vectors, as the recipe's cache has it."""
    in_float64 = copy.deepcopy(model).double().eval()
    texts = [pair.parts[side] for side in (0, 1) for pair in pairs]
    keys = torch.tensor([pair.parts[1].features["key"] for pair in pairs])
    with torch.no_grad():
        vectors = task.vectors(in_float64, task.collate(texts))
    queries, documents = vectors.split(len(pairs))
    _, *gradients = task.objective.with_gradients(queries, documents, keys)
    by_text = dict(zip([text.id for text in texts], torch.cat(gradients), strict=True))

    def collate(chosen: Sequence[Example], length: int) -> tuple[dict[str, Tensor], Tensor]:
        return task.collate(chosen, length), torch.stack([by_text[text.id] for text in chosen])

    return collate


def _with_linear_losses(task: PoolsParts, model: nn.Module, examples: Sequence[Example]) -> Any:
    """Collates windows with the gradient of the loss of their texts by each, as the recipe's cache has it."""
    in_float64 = copy.deepcopy(model).double().eval()
    windows = inputs_of(examples)
    collate = cast(Any, task).collate
    with torch.no_grad():
        outputs = task.outputs(in_float64, collate(windows))
    loss = task.pooled_loss(examples, outputs.requires_grad_())
    (gradient,) = torch.autograd.grad(loss, [outputs])
    by_window = dict(zip([window.id for window in windows], gradient, strict=True))
    of_each = loss.detach() / len(windows)

    def of_chosen(chosen: Sequence[Example], length: int) -> tuple[dict[str, Tensor], LinearLoss]:
        gradients = torch.stack([by_window[window.id] for window in chosen])
        return collate(chosen, length)[0], LinearLoss(of_each * len(chosen), gradients)

    return of_chosen


def _labelled(task: Any, batch: Any) -> Mapping[str, Tensor] | None:
    """A task's batch as the model takes it with labels; None where it has no loss of its own."""
    inputs, labels = batch
    if isinstance(labels, Targets):
        ids = inputs["input_ids"]
        flat = torch.full((ids.numel(),), IGNORE)
        flat[labels.positions + isinstance(task, CausalTexts)] = labels.tokens  # which shifts labels itself
        labels = flat.view(ids.shape)
    return {**inputs, "labels": labels} if isinstance(inputs, Mapping) and isinstance(labels, Tensor) else None


def _with_own_loss(model: nn.Module) -> nn.Module:
    """A copy that gives logits again, where the recipe's model stops before its output layer."""
    copied = copy.deepcopy(model)
    layer = getattr(copied, "get_output_embeddings", lambda: None)()
    if isinstance(layer, nn.Module):
        layer.__dict__.pop("forward", None)
    return copied
