"""What the stock Trainer, and a plain loop on accelerate, compute at one example in a forward, truly run."""

import copy
import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_accum.errors import first_line
from hf_accum.gradient_check.probe import Probe
from hf_accum.gradient_check.promotion import Promotion
from hf_accum.gradient_check.randomness import turn_off_as_in
from hf_accum.gradient_check.report import StockLoop

_LABELS = ("labels", "start_positions", "end_positions")
_MOST_EXAMPLES = 8


def labelled(model: Any, batch: Any) -> Mapping[str, Tensor] | None:
    """A batch as a transformers model takes it to give its own loss; None if it is not one."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or not isinstance(batch, Mapping):
        return None
    known = inspect.signature(model.forward).parameters
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    is_labelled = any(name in tensors for name in _LABELS) and set(tensors) <= set(known)
    return tensors if is_labelled else None


def compare_stock_loops(
    model: nn.Module, batch: Mapping[str, Tensor], without: nn.Module
) -> tuple[tuple[StockLoop, ...], list[str]]:
    """Both loops on the first examples of a batch, in float64; and which could not be run, why.

    The kinds of modules that draw no random numbers in the model `without` draw none.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return (), ["the stock loops: several ranks are running"]
    n = min(_MOST_EXAMPLES, len(next(iter(batch.values()))))
    probe = Probe(model, lambda model, batch: model(**batch).loss)
    probe.model.cpu()
    rows = [{name: of[place] for name, of in probe.on_device(batch).items()} for place in range(n)]
    turn_off_as_in(probe.model, without)
    loops, failed = [], []
    for name, run in (("transformers' Trainer", _of_trainer), ("accelerate's accumulate", _of_accelerate)):
        try:
            with _apart(), Promotion():
                whole, single = (run(copy.deepcopy(probe.model), rows, size) for size in (n, 1))
        except Exception as error:  # of a library, on a model of anybody's
            failed.append(f"{name}: {first_line(error)}")
            continue
        ratio = float(single.norm() / whole.norm())
        loops.append(StockLoop(name, n, ratio, float(F.cosine_similarity(single, whole, dim=0))))
    return tuple(loops), failed


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def _stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _of_trainer(model: nn.Module, rows: Sequence[Mapping[str, Tensor]], batch_size: int) -> Tensor:
    from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

    gradients: list[Tensor] = []

    class Read(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
            gradients.append(_flat(model))

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,  # type: ignore[arg-type]
            TrainingArguments(
                folder,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=len(rows) // batch_size,
                max_steps=1,
                optim="sgd",
                learning_rate=0.0,
                max_grad_norm=0.0,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            data_collator=_stacked,
            train_dataset=list(rows),  # type: ignore[arg-type]
            callbacks=[Read()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    (gradient,) = gradients
    return gradient


def _of_accelerate(model: nn.Module, rows: Sequence[Mapping[str, Tensor]], batch_size: int) -> Tensor:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=len(rows) // batch_size)
    loader = DataLoader(list(rows), batch_size=batch_size, collate_fn=_stacked)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    gradients: list[Tensor] = []
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                gradients.append(_flat(model))
            optimizer.step()
            optimizer.zero_grad()
    (gradient,) = gradients
    return gradient


@contextmanager
def _apart() -> Iterator[None]:
    """accelerate's state of the process, which is one for all, and the environment, are as they were afterwards."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from hf_accum.models.loading import quiet_transformers

    states: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)
    kept = [dict(state._shared_state) for state in states]
    environment = dict(os.environ)
    for state in states:
        state._shared_state.clear()
    try:
        with quiet_transformers():
            yield
    finally:
        for state, values in zip(states, kept, strict=True):
            state._shared_state.clear()
            state._shared_state.update(values)
        os.environ.clear()
        os.environ.update(environment)
