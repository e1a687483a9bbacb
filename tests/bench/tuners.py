"""What finds a micro-batch size, side by side: this project's `tune`, and its neighbours.

All on one virtual device of so many bytes (`hf_accum.device.live_bytes.LiveBytes`: real operations on the CPU, live
tensors counted, out of memory raised over the budget), with MiniLM and adapters of rank 16, no dropout, sequence
classification, all texts as long as allowed, 64 examples wanted for each optimizer step:

- hf_accum: `tune`, then one window of 64 examples cut by what it found;
- accelerate: `find_executable_batch_size` from 64, around two optimizer steps (the model is loaded once, not at
  every attempt as in its documentation, which would take longer);
- transformers: `Trainer` with `auto_find_batch_size=True`, 64 examples on the device, no accumulation, two steps;
- Lightning: `Tuner.scale_batch_size` (its BatchSizeFinder) as it comes, then two steps of `fit`.

The device says "CUDA out of memory.", as a real one would: the neighbours know the condition by that text.

The true largest is found by force: windows of two micro-batches, the second with the gradients of the first and
the optimizer's state alive, are really run, one example more or less at a time, until one size goes through and the
next does not.

`seconds` are those before training proper: for `tune` and Lightning the search, for the other two, which find a
size by training until it goes through, all until the last failure. `failures` are out-of-memory errors raised on
the way; `examples a step` are those of each optimizer step that was run afterwards, as counted by the model.
"""

import gc
import importlib
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from common import argument_parser, load_minilm, minilm_task, print_header, print_table, use_threads
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_accum import WindowExecution, accumulate
from hf_accum.accumulation.capacity import WorkingCapacity
from hf_accum.accumulation.window import Window
from hf_accum.config.lora import LoraConfig
from hf_accum.device.live_bytes import LiveBytes
from hf_accum.device.memory import VirtualMemory
from hf_accum.models.optimizer import build_optimizer
from hf_accum.recipe import Example, start_accelerator
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.text_classification.task import TextClassification
from hf_accum.tuner.search import tune
from hf_accum.tuner.workload import workload_of
from recipes.clinical_classification import ClinicalClassificationConfig

CPU = torch.device("cpu")
LABELS = LabelColumn("label", "single_label_classification", ("a", "b", "c", "d"))
MIB = 2**20
NUM_STEPS = 2
WANTED = 64
CONFIG = ClinicalClassificationConfig(learning_rate=1e-3, weight_decay=0.01)
make_optimizer = partial(build_optimizer, flags=CONFIG)


@dataclass
class Found:
    """What one tuner found, and what it took."""

    size: int
    seconds: float
    num_failures: int
    examples_of_steps: list[int]
    note: str = ""


@dataclass
class Case:
    """A length and a budget."""

    length: int
    budget_bytes: int

    @property
    def task(self) -> TextClassification:
        """That of this project."""
        return minilm_task(LABELS, "text", self.length)

    def new_model(self) -> nn.Module:
        """MiniLM with adapters, from the same weights each time."""
        return load_minilm(self.task, LoraConfig(), dropout=0.0)


class VirtualDevice(LiveBytes):
    """A device that says what CUDA says when its memory runs out, and counts how often.

    As on a GPU, nothing of a failed backward is alive when the next forward begins.
    """

    def __init__(self, model: nn.Module, budget_bytes: int | None) -> None:
        super().__init__(budget_bytes, held=[*model.parameters(), *model.buffers()])
        self.num_failures = 0
        self.failed_at = 0.0
        model.register_forward_pre_hook(drop_failed_backward)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except torch.OutOfMemoryError as error:
            self.num_failures += 1
            self.failed_at = time.perf_counter()
            error.args = (f"CUDA out of memory. {error.args[0]}",)
            raise

    def seconds_since(self, start: float) -> float:
        """Seconds from a start to the last failure."""
        return max(0.0, self.failed_at - start)


def drop_failed_backward(*_: Any) -> None:
    """Let go of what a failed backward has left in the queue of torch's engine, by another backward.

    What was to run next waits there, and holds its graph with all activations. A GPU's queue has a thread of its own,
    which throws it away at once; the CPU's is only looked at in the next backward of the calling thread.
    """
    torch.zeros((), requires_grad=True).clone().backward()


class MadeUpTexts(Dataset[dict[str, Tensor]]):
    """Random tokens; every second text is one token shorter and padded, so that there is a mask."""

    def __init__(self, length: int, num_texts: int = 256) -> None:
        generator = torch.Generator().manual_seed(0)
        self.input_ids = torch.randint(1_000, 30_000, (num_texts, length), generator=generator)
        self.input_ids[1::2, -1] = 0
        self.labels = torch.randint(len(LABELS.names), (num_texts,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.input_ids[index]
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": self.labels[index]}


class StepCounter:
    """Counts the examples that a model is given for each optimizer step."""

    def __init__(self, model: nn.Module) -> None:
        self.steps: list[int] = []
        self.num_discarded_steps = 0
        self._num_examples = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self._num_examples += len(kwargs["input_ids"])

    def start(self) -> None:
        """An attempt begins: steps of earlier ones, which failed, are only counted."""
        self.num_discarded_steps += len(self.steps)
        self.steps.clear()
        self._num_examples = 0

    def stepped(self) -> None:
        """An optimizer step is done."""
        self.steps.append(self._num_examples)
        self._num_examples = 0


def by_hf_accum(case: Case) -> Found:
    """This project's tuner, and one window."""
    model, task = case.new_model(), case.task
    workload = workload_of(model, task, CONFIG)
    tuning = tune(workload, VirtualMemory(case.budget_bytes), CPU, most=WANTED)
    num_failures = sum(probe.measured_bytes is None for probe in tuning.probes)
    texts = MadeUpTexts(case.length, WANTED)
    examples = tuple(
        Example(str(i), n, 1.0, {"input_ids": text["input_ids"][:n].tolist(), "label": int(text["labels"])})
        for i, text in enumerate(texts[i] for i in range(WANTED))
        for n in [int(text["attention_mask"].sum())]
    )
    num_tokens = sum(example.length for example in examples)
    window = Window(1, 0, 0, examples, examples[0], 0, WANTED, float(WANTED), num_tokens, "")
    execution = WindowExecution(window, task.collate)
    accelerator = start_accelerator()
    optimizer = make_optimizer(model)
    counter = StepCounter(model)
    with VirtualDevice(model, case.budget_bytes) as device:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # so that its state is there, as in all windows but the first
        optimizer.zero_grad()
        for micro_batch in execution.micro_batches(WorkingCapacity(tuning.capacity)):
            with accumulate(accelerator, model, micro_batch):
                loss = task.summed_loss(model, micro_batch.batch)
                accelerator.backward(micro_batch.scaled(loss))
        optimizer.step()
        counter.stepped()
    probes = ", ".join(f"{p.num_examples} x {p.length}" for p in tuning.probes)
    note = f"probes of hf_accum: {probes}; replays of its window: {execution.num_oom_replays}"
    size = tuning.capacity.num_examples(case.length)
    return Found(size, tuning.seconds, num_failures + device.num_failures, counter.steps, note)


def by_accelerate(case: Case) -> Found:
    """Its decorator around a plain training loop."""
    model, texts = case.new_model(), MadeUpTexts(case.length)
    counter = StepCounter(model)

    def training(batch_size: int) -> int:
        counter.start()
        model.zero_grad()
        optimizer = make_optimizer(model)
        for _, batch in zip(range(NUM_STEPS), DataLoader(texts, batch_size), strict=False):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            counter.stepped()
        return batch_size

    find: Any = find_executable_batch_size(training, starting_batch_size=WANTED)  # type: ignore[arg-type]
    start = time.perf_counter()
    with VirtualDevice(model, case.budget_bytes) as device:
        size: int = find()
    accumulated = WANTED // size * size
    note = f"accelerate's example of automatic accumulation would make it {WANTED // size} x {size} = {accumulated}"
    return Found(size, device.seconds_since(start), device.num_failures, counter.steps, note)


def by_trainer(case: Case) -> Found:
    """The stock Trainer."""
    model = case.new_model()
    counter = StepCounter(model)

    class CountSteps(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            counter.start()

        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            counter.stepped()

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,  # type: ignore[arg-type]
            TrainingArguments(
                folder,
                auto_find_batch_size=True,
                per_device_train_batch_size=WANTED,
                gradient_accumulation_steps=1,
                max_steps=NUM_STEPS,
                use_cpu=True,
                disable_tqdm=True,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
            ),
            train_dataset=MadeUpTexts(case.length),
            callbacks=[CountSteps()],
        )
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        with VirtualDevice(model, case.budget_bytes) as device:
            trainer.train()
    note = ""
    if counter.num_discarded_steps:
        note = (
            f"Trainer: {counter.num_discarded_steps} optimizer step(s) of attempts that failed later, "
            "whose changes of the weights stayed"
        )
    return Found(trainer._train_batch_size, device.seconds_since(start), device.num_failures, counter.steps, note)


def by_lightning(mode: str, case: Case) -> Found:
    """Lightning's tuner. The device is there for the steps, not for the checkpoint that is saved and loaded."""
    lightning = importlib.import_module("lightning.pytorch")
    tuner = importlib.import_module("lightning.pytorch.tuner")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model, texts = case.new_model(), MadeUpTexts(case.length)
    device = VirtualDevice(model, case.budget_bytes)
    counter = StepCounter(model)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.batch_size = 2  # where the search starts; that is also its default

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(texts, self.batch_size)

        def configure_optimizers(self) -> Any:
            return make_optimizer(self.model)

        def transfer_batch_to_device(self, batch: Any, _device: Any, _index: int) -> Any:
            with device:
                return {name: tensor.clone() for name, tensor in batch.items()}

        def training_step(self, batch: Any, _: int) -> Tensor:
            return self.model(**batch).loss

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            with device:  # the closure that it is given runs forward and backward
                super().optimizer_step(*args, **kwargs)
            counter.stepped()

    def new_trainer(folder: str, **settings: Any) -> Any:
        return lightning.Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )

    with tempfile.TemporaryDirectory() as folder:
        module = Module()
        start = time.perf_counter()
        size = tuner.Tuner(new_trainer(folder)).scale_batch_size(module, mode=mode)
        seconds = time.perf_counter() - start
        num_failures = device.num_failures
        counter.start()
        note = ""
        try:
            new_trainer(folder, max_steps=NUM_STEPS).fit(module)
        except torch.OutOfMemoryError:
            note = f"Lightning ({mode}): training afterwards ran out of memory"
    return Found(size, seconds, num_failures, counter.steps, note)


TUNERS: dict[str, Callable[[Case], Found]] = {
    "hf_accum": by_hf_accum,
    "accelerate": by_accelerate,
    "Trainer": by_trainer,
    "Lightning-power": partial(by_lightning, "power"),
    "Lightning-binsearch": partial(by_lightning, "binsearch"),
}


def run_window(case: Case, num_examples: int, budget_bytes: int | None) -> int | None:
    """Two micro-batches and an optimizer step, the state of an earlier step alive; the peak, or None over budget."""
    model = case.new_model()
    optimizer = make_optimizer(model)
    texts = MadeUpTexts(case.length, num_examples)
    try:
        with VirtualDevice(model, budget_bytes) as device:
            for sizes in ([1], [num_examples] * 2):
                for size in sizes:
                    model(**next(iter(DataLoader(texts, size)))).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    except torch.OutOfMemoryError:
        return None
    return device.peak_bytes


def true_largest(case: Case) -> int:
    """By force: this many go through, one more does not."""
    one, two = (run_window(case, number, None) for number in (2, 3))
    assert one is not None
    assert two is not None
    number = max(1, 2 + (case.budget_bytes - one) // (two - one))  # where to begin
    fits = partial(run_window, case, budget_bytes=case.budget_bytes)
    while number > 0 and fits(number) is None:
        number -= 1
    while fits(number + 1) is not None:
        number += 1
    return number


def report(case: Case, tuners: dict[str, Callable[[Case], Found]]) -> None:
    """Run all tuners on a case and print its table."""
    truth = true_largest(case)
    print(f"{case.length} tokens, {case.budget_bytes // MIB:,} MiB: the true largest micro-batch is {truth}\n")
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for name, find in tuners.items():
        gc.collect()
        try:
            found = find(case)
        except RuntimeError as error:
            rows.append((name, "none", "", "", "", ""))
            notes.append(f"{name}: {error}")
            continue
        steps = ", ".join(map(str, dict.fromkeys(found.examples_of_steps))) or "none"
        share = f"{found.size / truth:.0%}"
        rows.append((name, str(found.size), share, f"{found.seconds:.1f}", str(found.num_failures), steps))
        notes.extend([found.note] if found.note else [])
    print_table(("tuner", "size", "of the largest", "seconds", "failures", "examples a step"), rows)
    for note in notes:
        print(note)
    print(flush=True)


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--length", type=int, nargs="+", default=[256, 512], help="tokens (default: %(default)s)")
    parser.add_argument("--budget", type=int, nargs="+", default=[360, 1060], help="in MiB (default: %(default)s)")
    parser.add_argument(
        "--tuners", nargs="+", choices=list(TUNERS), default=list(TUNERS), metavar="NAME", help="of: %(choices)s"
    )
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    try:
        print(f"Lightning {version('lightning')}", end="")
    except PackageNotFoundError:
        print("Lightning is not installed, and left out (pip install lightning)", end="")
        arguments.tuners = [name for name in arguments.tuners if not name.startswith("Lightning")]
    print(f"; load average at the start {os.getloadavg()[0]:.1f}\n", flush=True)
    transformers_logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    for length in arguments.length:
        for budget in arguments.budget:
            report(Case(length, budget * MIB), {name: TUNERS[name] for name in arguments.tuners})
    print(f"load average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
