"""Peers of this project's loop: transformers' Trainer and TRL's, on the same texts, model and device."""

import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Job, accelerator_on, reset_accelerate
from torch import Tensor, nn

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.models.optimizer import build_optimizer
from hf_accum.tasks.tokenization import pad


@dataclass(frozen=True)
class PeerRun:
    """Seconds of one pass of training, of so many real tokens; the allocator's peaks (0 on a CPU)."""

    seconds: float
    num_tokens: int
    allocated_bytes: int
    reserved_bytes: int

    @property
    def microseconds_per_token(self) -> float:
        return 1e6 * self.seconds / self.num_tokens


def examples_of(job: Job) -> list[Example]:
    """All texts of a job, tokenised."""
    return list(job.task.encode([(str(index), job.prepare(row)) for index, row in enumerate(job.rows)]))


def start_measuring(device: torch.device) -> float:
    """Peaks begin anew; the time now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return time.perf_counter()


def end_measuring(started: float, num_tokens: int, device: torch.device) -> PeerRun:
    """Once the device is through."""
    if device.type != "cuda":
        return PeerRun(time.perf_counter() - started, num_tokens, 0, 0)
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return PeerRun(seconds, num_tokens, *peaks)


def own_run(job: Job, precision: str, cutter: Cutter | int, window: int) -> PeerRun:
    """This project's loop over all the job's texts, once: read, tokenised and cut while it runs."""
    num_tokens = 0
    with accelerator_on(job.device, precision) as accelerator:
        started = start_measuring(job.device)
        for execution in job.windows(accelerator, cutter, window, len(job.rows) // window):
            num_tokens += execution.window.num_tokens
        return end_measuring(started, num_tokens, job.device)


def trainer_run(
    job: Job, folder: Path, precision: str, micro_batch_size: int, window: int, by_length: bool = False
) -> PeerRun:
    """transformers' Trainer over all the job's texts, once."""
    from transformers import Trainer, TrainingArguments

    rows = [
        {"input_ids": list(e.features["input_ids"]), "label": e.features["label"], "length": e.length}
        for e in examples_of(job)
    ]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        examples = [Example("", len(row["input_ids"]), 1.0, {"input_ids": row["input_ids"]}) for row in rows]
        return {**pad(examples, 0), "labels": torch.tensor([row["label"] for row in rows])}

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=window // micro_batch_size,
        num_train_epochs=1,
        **_how(job.device, precision),
        remove_unused_columns=False,
        train_sampling_strategy="group_by_length" if by_length else "random",
        length_column_name="length",
    )
    optimizer = build_optimizer(job.work.model, job.config)
    how: Any = {"train_dataset": rows, "data_collator": collate, "optimizers": (optimizer, None)}
    trainer = Trainer(model=_alone(job.work.model, arguments), args=arguments, **how)
    return _train(trainer, sum(len(row["input_ids"]) for row in rows), job.device)


def sft_run(job: Job, model: nn.Module, folder: Path, precision: str, micro_batch_size: int, window: int) -> PeerRun:
    """TRL's SFTTrainer over all texts of a language model's job, once."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    rows = [{"input_ids": list(map(int, e.features["input_ids"]))} for e in examples_of(job)]
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=window // micro_batch_size,
        num_train_epochs=1,
        **_how(job.device, precision),
        max_length=job.task.max_length,
        gradient_checkpointing=False,
    )
    trainer = SFTTrainer(
        model=_alone(model, arguments),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=job.task.tokenizer,
    )
    return _train(trainer, sum(len(row["input_ids"]) for row in rows), job.device)


def _how(device: torch.device, precision: str) -> dict[str, Any]:
    return {
        "use_cpu": device.type == "cpu",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "learning_rate": 1e-3,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
    }


def _alone(model: Any, arguments: Any) -> Any:
    """The model, for one device: with several the Trainer would spread each micro-batch over them."""
    reset_accelerate()
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return model


def _train(trainer: Any, num_tokens: int, device: torch.device) -> PeerRun:
    started = start_measuring(device)
    trainer.train()
    return end_measuring(started, num_tokens, device)
