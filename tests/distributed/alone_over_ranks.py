"""Run by `accelerate launch`, or alone: the public pieces in a loop on accelerate, on float64 models of plain torch.

Prints one JSON line from rank 0: of each piece the largest relative difference of a gradient to that of one unsplit
batch, or of weights to those of a run that was not interrupted.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hf_accum import (
    CrossEntropy,
    FoundCapacity,
    GradCache,
    InBatchNegatives,
    UserError,
    accumulate,
    find_capacity,
    predict_each_once,
    windows_of,
)

NUM_ROWS = 23


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def rows() -> tuple[Tensor, Tensor]:
    """Inputs, and labels of which some do not count."""
    torch.manual_seed(1)
    labels = torch.randint(0, 4, (NUM_ROWS,))
    labels[::5] = -100
    return torch.randn(NUM_ROWS, 3, dtype=torch.float64), labels


def summed_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def num_labels(batch: Any) -> int:
    return int((batch[1] != -100).sum())


def difference(model: nn.Module, expected: list[Tensor]) -> float:
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    scale = max(float(gradient.abs().max()) for gradient in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / scale


def loaders(accelerator: Accelerator) -> Iterator[tuple[str, Any, Callable[[int, int], list[int]]]]:
    """With the rows that a window of two batches (of 4, on each rank) has, by its number."""
    data, count = TensorDataset(*rows()), accelerator.num_processes

    def in_order(window: int, per_window: int) -> list[int]:
        return list(range(NUM_ROWS))[window * per_window : (window + 1) * per_window]

    yield "a list", list(zip(*(tensor.split(4) for tensor in rows()), strict=True)), in_order
    yield "a loader", DataLoader(data, batch_size=4), in_order
    even = DataLoaderConfiguration(even_batches=False)
    prepared = Accelerator(cpu=True, dataloader_config=even).prepare_data_loader(DataLoader(data, batch_size=4))
    yield "a prepared loader", prepared, in_order
    assert count <= 3


def check_windows(accelerator: Accelerator) -> dict[str, float]:
    worst: dict[str, float] = {}
    sizes: Any = [{"batches_per_step": 2}, {"batches_per_step": 1}, {"examples_per_step": 7}]
    for wrapped in (False, True):
        for name, loader, rows_of in loaders(accelerator):
            for how in sizes:
                for capacity in (1, 3, 100):
                    plain = make_model()
                    model = accelerator.prepare_model(plain) if wrapped else plain
                    of_batches = 4 * accelerator.num_processes * how.get("batches_per_step", 0)
                    per_window = how.get("examples_per_step", of_batches)
                    if "prepared" in name and "examples_per_step" in how:
                        continue  # which rows come in which window is up to accelerate's shards
                    seen = 0
                    for number, window in enumerate(windows_of(accelerator, loader, weight=num_labels, **how)):
                        for micro_batch in window.micro_batches(capacity):
                            with accumulate(accelerator, model, micro_batch):
                                accelerator.backward(micro_batch.scaled(summed_loss(model, micro_batch.batch)))
                        of_window = rows_of(number, per_window)
                        seen += len(of_window)
                        inputs, labels = (tensor[of_window] for tensor in rows())
                        expected = torch.autograd.grad(
                            F.cross_entropy(plain(inputs), labels), list(plain.parameters())
                        )
                        case = f"{name}, {how}, {capacity}, {'wrapped' if wrapped else 'plain'}"
                        worst[case] = max(worst.get(case, 0.0), difference(plain, list(expected)))
                        plain.zero_grad()
                    assert seen == NUM_ROWS
    return worst


def check_tuned(accelerator: Accelerator) -> dict[str, float]:
    """A capacity that was found, and has been in a file; the loss and the weight of the package."""
    loss_of = CrossEntropy()
    model = make_model()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batch = rows()
    found = find_capacity(model, optimizer, summed_loss, batch, max_examples=NUM_ROWS, memory_budget="3KiB")
    capacity = FoundCapacity.from_json(json.loads(json.dumps(found.as_json())))
    assert 1 <= capacity.num_examples(1) < NUM_ROWS
    loader = [batch] * accelerator.num_processes
    for window in windows_of(accelerator, loader, batches_per_step=1, weight=lambda batch: loss_of.weight(batch[1])):
        for micro_batch in window.micro_batches(capacity):
            with accumulate(accelerator, model, micro_batch):
                inputs, labels = micro_batch.batch
                assert len(inputs) <= capacity.num_examples(1)
                accelerator.backward(micro_batch.scaled(loss_of(model(inputs), labels)))
        assert window.num_micro_batches > 1
    plain = accelerator.unwrap_model(model)
    expected = torch.autograd.grad(F.cross_entropy(plain(batch[0]), batch[1]), list(plain.parameters()))
    return {"tuned": difference(plain, list(expected))}


def check_pairs(accelerator: Accelerator) -> dict[str, float]:
    inputs, _ = rows()
    batches = [{"query": part[:, :2], "document": part[:, 1:]} for part in inputs.split(5)]
    objectives: dict[str, Any] = {
        "InfoNCE": InBatchNegatives(0.2),
        "one's own": lambda q, d: -((q @ d.T) - torch.logsumexp(q @ d.T, 1, keepdim=True)).diagonal(),
    }
    worst: dict[str, float] = {}
    for name, objective in objectives.items():
        torch.manual_seed(0)
        queries, documents = nn.Linear(2, 4).double(), nn.Linear(2, 4).double()
        both = nn.ModuleList([queries, documents])
        cache = GradCache(accelerator, objective)
        for window in windows_of(accelerator, batches, batches_per_step=-(-5 // accelerator.num_processes)):
            for micro_batch in cache.micro_batches(window, 2):
                with accumulate(accelerator, [queries, documents], micro_batch):
                    pairs = micro_batch.batch
                    loss = cache.scaled(micro_batch, queries(pairs["query"]), documents(pairs["document"]))
                    if loss is not None:
                        accelerator.backward(loss)
            q, d = queries(inputs[:, :2]), documents(inputs[:, 1:])
            if name == "InfoNCE":
                scores = F.normalize(q, dim=1) @ F.normalize(d, dim=1).T / 0.2
                expected = F.cross_entropy(scores, torch.arange(NUM_ROWS))
            else:
                expected = -F.log_softmax(q @ d.T, 1).diagonal().mean()
            gradients = torch.autograd.grad(expected, list(both.parameters()))
            worst[f"pairs, {name}"] = difference(both, list(gradients))
    return worst


def train(accelerator: Accelerator, folder: Path, stop_after: int | None, resume: bool) -> list[Tensor]:
    """Two passes; ended behind a window, after accelerate has saved all, or begun from there."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model, optimizer = accelerator.prepare(model, optimizer)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*rows()), batch_size=4, shuffle=True, generator=generator)
    windows = windows_of(accelerator, loader, batches_per_step=1, weight=num_labels)
    accelerator.register_for_checkpointing(windows)
    if resume:
        accelerator.load_state(str(folder))
    for _ in range(windows.epoch, 2):
        for window in windows:
            for micro_batch in window.micro_batches(2):
                with accumulate(accelerator, model, micro_batch):
                    accelerator.backward(micro_batch.scaled(summed_loss(model, micro_batch.batch)))
            optimizer.step()
            optimizer.zero_grad()
            if windows.step == stop_after:
                accelerator.save_state(str(folder))
                return []
    return [p.detach().clone() for p in accelerator.unwrap_model(model).parameters()]


def check_resume(folder: Path) -> dict[str, float]:
    whole = train(Accelerator(cpu=True), folder, None, resume=False)
    worst = 0.0
    for stop_after in (1, 4):
        at = folder / str(stop_after)
        train(Accelerator(cpu=True), at, stop_after, resume=False)
        resumed = train(Accelerator(cpu=True), at, None, resume=True)
        worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(whole, resumed, strict=True)))
    return {"resumed": worst}


def check_predictions(accelerator: Accelerator) -> dict[str, float]:
    inputs, labels = rows()
    batches = list(zip(inputs.split(4), labels.split(4), strict=True))
    model = accelerator.prepare_model(make_model())
    found, truth = predict_each_once(accelerator, model, batches, lambda m, batch: (m(batch[0]), batch[1]))
    assert torch.equal(truth, labels)
    assert model.training
    return {"predicted": float((found - make_model()(inputs).detach()).abs().max())}


def check_refusals(accelerator: Accelerator) -> dict[str, float]:
    """What several ranks have to be told: 0 where they are."""
    if accelerator.num_processes == 1:
        return {}
    cases = {
        "have other values on other ranks": make_model(seed=accelerator.process_index),
        "gradients that are sparse": nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 4)).double(),
    }
    worst: dict[str, float] = {}
    for message, model in cases.items():
        for parameter in model.parameters() if "sparse" in message else ():
            parameter.data.fill_(0.5)
        inputs = rows()[1].abs() % 4 if "sparse" in message else rows()[0]
        window = next(iter(windows_of(accelerator, [inputs], examples_per_step=NUM_ROWS)))
        try:
            for micro_batch in window.micro_batches():
                with accumulate(accelerator, model, micro_batch):
                    accelerator.backward(micro_batch.scaled(model(micro_batch.batch).sum()))
            worst[message] = 1.0
        except UserError as error:
            worst[message] = float(message not in str(error))
    return worst


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    worst = (
        check_windows(accelerator)
        | check_tuned(accelerator)
        | check_pairs(accelerator)
        | check_predictions(accelerator)
        | check_refusals(accelerator)
        | check_resume(folder)
    )
    if accelerator.is_main_process:
        print(json.dumps({"num_ranks": accelerator.num_processes, "worst": worst}))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
