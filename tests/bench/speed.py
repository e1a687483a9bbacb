"""How fast a window is: this loop, a plain accelerate loop, the stock Trainer, also grouped by length, and the ideal.

Real clinical synopses, MiniLM with the recipe's LoRA, dropout as in its config, train mode, the same optimizer steps
of 64 examples, the same cap of memory: as many tokens in one forward as `--micro_batch_size` of the longest texts
have. In turns, each after warm-up rounds; each neighbour's run stands between two of hf_accum's, and its time is
divided by the mean of those two: a machine whose speed drifts within minutes does not decide the ratio. Medians.
Models, tokenised texts and the Trainer itself are made before the clock starts; this project's loop reads, tokenises
and cuts while it runs.

- plain: accelerate's `accumulate` over a DataLoader of micro-batches, padded to their longest;
- Trainer: transformers', the same micro-batches, the accumulation steps that make 64;
- Trainer by length: `train_sampling_strategy="group_by_length"`, which changes what a step sees;
- hf_accum: `WindowStream`, `Pipeline` and `accumulate`; the costs are learned in its warm-up rounds, as a run's first
  windows do it (what the very first round took is printed too);
- ideal: the same real tokens in micro-batches of one length, without padding, as even as can be: no loop around it;
  the fastest of micro-batches of 2, 4, 8 and 16.

    python tests/bench/speed.py --threads 2
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from common import (
    argument_parser,
    encoded,
    evenly_spaced,
    load_minilm,
    load_recipe_data,
    minilm_task,
    print_header,
    print_table,
    source_of,
    train,
    use_threads,
)
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_accum.accumulation.capacity import Capacity, Peak, WorkingCapacity
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.time_model import WorkingCosts
from hf_accum.config.lora import LoraConfig
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.models.optimizer import build_optimizer
from hf_accum.recipe import Pipeline, WindowStream, ranks_of, start_accelerator
from hf_accum.tasks.tokenization import pad

CPU = torch.device("cpu")
WINDOW = 64
Run = Callable[[], float]  # seconds


class Contenders:
    """All of them on the same rows, each with a model of its own from the same weights."""

    def __init__(self, num_windows: int, micro_batch_size: int, most: int, equal_length: int | None = None) -> None:
        data = load_recipe_data()
        max_length = equal_length or 512
        self.task = minilm_task(data.labels, data.text_column, max_length=max_length)
        self.rows = evenly_spaced(data.train, num_windows * WINDOW)
        if equal_length is not None:  # each text over again, up to so many tokens
            column = data.text_column
            enough = [equal_length // max(1, e.length - 2) + 1 for e in encoded(self.task, self.rows)]
            self.rows = [
                {**row, column: " ".join([row[column]] * times)} for row, times in zip(self.rows, enough, strict=True)
            ]
        self.examples = encoded(self.task, self.rows)
        self.num_windows = num_windows
        self.micro_batch_size = micro_batch_size
        self.accelerator = start_accelerator()
        # What fits, in tokens: as if memory were proportional to them.
        tokens = Peak(((0.0, 0.0, 0.0, 1.0),), unit_length=1)
        capacity = Capacity(most, tokens, micro_batch_size * max_length)
        self.cutter = Cutter(WorkingCapacity(capacity), WorkingCosts())
        self.padded_tokens = 0

    def new_model(self) -> Any:
        """As each run of a recipe has it."""
        return load_minilm(self.task, LoraConfig()).train()

    def hf_accum(self) -> Run:
        """This project's loop."""
        model = self.new_model()
        optimizer = build_optimizer(model, OptimizationFlags(learning_rate=3e-4, weight_decay=0.01))

        def run() -> float:
            started = time.perf_counter()
            stream = WindowStream(
                source_of(self.rows),
                self.task.prepare,
                self.task.encode,
                ranks=ranks_of(self.accelerator),
                effective_batch_size=WINDOW,
                seed=0,
                shuffle_block_size=1,
            )
            self.padded_tokens = 0
            windows = Pipeline(stream, self.cutter, self.task.collate, CPU)
            for window in train(windows, self.cutter, self.accelerator, self.task, model, optimizer):
                self.padded_tokens += window.num_padded_tokens
            return time.perf_counter() - started

        return run

    def plain(self) -> Run:
        """The loop of accelerate's documentation."""
        model = self.new_model()
        optimizer = build_optimizer(model, OptimizationFlags(learning_rate=3e-4, weight_decay=0.01))
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=WINDOW // self.micro_batch_size)

        def run() -> float:
            # The state is one per process, and the other contenders have theirs in it.
            accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = True
            accelerator.gradient_accumulation_steps = WINDOW // self.micro_batch_size
            accelerator.step = 0
            num_steps = 0
            started = time.perf_counter()
            loader: Any = DataLoader(
                self.examples,  # type: ignore[arg-type]
                self.micro_batch_size,
                collate_fn=self.task.collate,
            )
            for inputs, labels in loader:
                with accelerator.accumulate(model):
                    loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                        optimizer.step()
                        optimizer.zero_grad()
                        num_steps += 1
            assert num_steps == self.num_windows
            return time.perf_counter() - started

        return run

    def trainer(self, by_length: bool) -> Run:
        """transformers' Trainer."""
        model = self.new_model()
        rows = [
            {"input_ids": e.features["input_ids"].tolist(), "label": e.features["label"], "length": e.length}
            for e in self.examples
        ]

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            from hf_accum.accumulation.example import Example

            examples = [Example("", len(r["input_ids"]), 1.0, {"input_ids": r["input_ids"]}) for r in rows]
            return {**pad(examples, 0), "labels": torch.tensor([r["label"] for r in rows])}

        def run() -> float:
            with tempfile.TemporaryDirectory() as folder:
                arguments = TrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=self.micro_batch_size,
                    gradient_accumulation_steps=WINDOW // self.micro_batch_size,
                    num_train_epochs=1,
                    use_cpu=True,
                    report_to=[],
                    disable_tqdm=True,
                    save_strategy="no",
                    logging_strategy="no",
                    remove_unused_columns=False,
                    train_sampling_strategy="group_by_length" if by_length else "sequential",
                    length_column_name="length",
                )
                trainer = Trainer(
                    model=model,
                    args=arguments,
                    train_dataset=rows,  # type: ignore[arg-type]
                    data_collator=collate,
                    optimizers=(
                        build_optimizer(model, OptimizationFlags(learning_rate=3e-4, weight_decay=0.01)),
                        None,
                    ),  # type: ignore[arg-type]
                )
                started = time.perf_counter()
                trainer.train()
                assert trainer.state.global_step == self.num_windows
                return time.perf_counter() - started

        return run

    def ideal(self, size: int) -> Run:
        """As many real tokens, in micro-batches of so many texts of the mean length."""
        model = self.new_model()
        optimizer = build_optimizer(model, OptimizationFlags(learning_rate=3e-4, weight_decay=0.01))
        length = round(sum(e.length for e in self.examples) / len(self.examples))
        batches = list(self._even_batches(length, size))

        def run() -> float:
            started = time.perf_counter()
            for index, batch in enumerate(batches, start=1):
                (self.task.summed_loss(model, batch) / WINDOW).backward()
                if index % (len(batches) // self.num_windows) == 0:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
            return time.perf_counter() - started

        return run

    def _even_batches(self, length: int, size: int) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.num_windows * WINDOW // size):
            ids = torch.randint(1_000, 30_000, (size, length), generator=generator)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.zeros(size, dtype=torch.long)


def quiet(run: Run) -> float:
    """The seconds of a run that the garbage of those before does not slow."""
    gc.collect()
    return run()


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num_windows", type=int, default=2, help="of 64 (default: %(default)s)")
    parser.add_argument("--num_rounds", type=int, default=5, help="of each contender (default: %(default)s)")
    parser.add_argument("--micro_batch_size", type=int, default=8, help="of the neighbours (default: %(default)s)")
    parser.add_argument("--most", type=int, default=64, help="examples that fit, for hf_accum (default: %(default)s)")
    parser.add_argument("--num_warm_ups", type=int, default=3, help="rounds of hf_accum (default: %(default)s)")
    parser.add_argument("--equal_length", type=int, help="all texts have so many tokens (default: as they are)")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    transformers_logging.set_verbosity_error()
    contenders = Contenders(arguments.num_windows, arguments.micro_batch_size, arguments.most, arguments.equal_length)
    runs = {
        "hf_accum": contenders.hf_accum(),
        "plain accelerate loop": contenders.plain(),
        "Trainer": contenders.trainer(by_length=False),
        "Trainer by length": contenders.trainer(by_length=True),
    }
    first = runs["hf_accum"]()
    for _ in range(arguments.num_warm_ups - 1):
        runs["hf_accum"]()
    for run in list(runs.values())[1:]:
        run()
    ideals = {size: contenders.ideal(size) for size in (2, 4, 8, 16)}
    for run in ideals.values():
        run()
    size = min(ideals, key=lambda size: ideals[size]())
    runs[f"ideal ({size} at once)"] = ideals[size]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.num_rounds):
        before = quiet(runs["hf_accum"])
        seconds["hf_accum"].append(before)
        for name, run in list(runs.items())[1:]:
            seconds[name].append(quiet(run))
            after = quiet(runs["hf_accum"])
            seconds["hf_accum"].append(after)
            ratios[name].append(2 * seconds[name][-1] / (before + after))
            before = after
    tokens = sum(e.length for e in contenders.examples)
    print(
        f"{len(contenders.examples)} texts, {tokens:,} tokens, {contenders.padded_tokens / tokens:.3f} padded / real"
    )
    print(f"the first round of hf_accum, before it had learned anything: {first:.2f} s")
    print(f"costs: {contenders.cutter.costs.costs if contenders.cutter.costs else None}\n")
    rows = []
    for name, measured in seconds.items():
        beside = ratios[name] or [1.0]
        rows.append(
            (
                name,
                f"{statistics.median(measured):.2f}",
                f"{min(measured):.2f}",
                f"{max(measured):.2f}",
                f"{statistics.median(beside):.2f}",
                " ".join(f"{ratio:.2f}" for ratio in beside),
            )
        )
    print_table(("loop", "median s", "least s", "greatest s", "by hf_accum beside it, median", "each round"), rows)


if __name__ == "__main__":
    main()
