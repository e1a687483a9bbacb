"""What somebody may have meant by a flag that there is not: one of the Trainer's, or one that is misspelt."""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from hf_accum.errors import UserError

OF_THE_TRAINER = {
    "per_device_train_batch_size": "--micro_batch_size",
    "per_device_batch_size": "--micro_batch_size",
    "train_batch_size": "--effective_batch_size",
    "batch_size": "--effective_batch_size",
    "gradient_accumulation_steps": "--effective_batch_size, the product over all ranks; the split follows",
    "auto_find_batch_size": "--micro_batch_size auto",
    "num_train_epochs": "--num_epochs",
    "lr_scheduler_type": "--lr_scheduler",
    "warmup_steps": "--warmup_ratio, a share of the steps",
    "optim": "--optimizer",
    "label_smoothing_factor": "--label_smoothing",
    "bf16": "accelerate launch --mixed_precision bf16",
    "fp16": "accelerate launch --mixed_precision fp16",
    "logging_steps": "--log_every",
    "report_to": "--trackers",
    "eval_steps": "--eval_every",
    "save_steps": "--save_every",
    "save_total_limit": "--keep_checkpoints",
    "metric_for_best_model": "--best_metric",
    "resume_from_checkpoint": "--resume",
    "model_name_or_path": "--model",
    "dataset_name": "--dataset",
    "train_file": "--dataset",
    "max_seq_length": "--max_length",
    "max_seq_len": "--max_length",
    "cutoff_len": "--max_length",
    "lora_r": "--lora.rank",
    "lora_rank": "--lora.rank",
    "lora_alpha": "--lora.alpha",
    "lora_dropout": "--lora.dropout",
    "lora_target_modules": "--lora.target_modules",
    "load_in_4bit": "--quantization nf4",
    "ddp_timeout": "--rank_timeout_minutes",
    "push_to_hub": "hf-accum publish, when the run is through",
    "hub_model_id": "hf-accum publish, when the run is through",
}
"""Names of the Trainer, its scripts, TRL, Axolotl and LLaMA-Factory, and what stands for them here.

The whole table, with what differs: recipes/guides/moving-from-the-trainer.md.
"""

_UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
_NOT_ACCEPTED = re.compile(r"(?:Option|Key) '([\w.]+)' is not (?:accepted|expected)")


def hints(message: str, names: Collection[str]) -> list[str]:
    """For each flag that a parser's message says is unknown what was probably meant, of the flags that there are."""
    found = _UNKNOWN.search(message)
    unknown = re.findall(r"(?:^|\s)--([\w.]+)", found[1]) if found else []
    unknown += _NOT_ACCEPTED.findall(message)
    said: list[str] = []
    for name in dict.fromkeys(unknown):
        if name in OF_THE_TRAINER:
            said.append(f"--{name} is here {OF_THE_TRAINER[name]}")
        elif meant := _meant(name, names):
            said.append(f"--{name}: {meant}")
    return said


def _meant(name: str, names: Collection[str]) -> str:
    close = get_close_matches(name, names, n=1)
    return f"is --{close[0]} meant?" if close else ""


def flags_in(usage: str) -> list[str]:
    """The flags that stand in the usage of a command."""
    return re.findall(r"--([\w.]+)", usage)


def refuse(flags: Sequence[str], why: str, own: Collection[str] = ()) -> None:
    """Refuse flags that are none of a command, but for `--debug`, which each takes.

    Of the command's `own` the one that was probably meant is named.

    Raises:
        UserError: naming the first.
    """
    others = [flag for flag in flags if flag not in ("--debug", "--debug=true")]
    if others:
        meant = _meant(others[0].split("=")[0].removeprefix("--"), own)
        raise UserError("; ".join(filter(None, (f"{others[0]}: {why}", meant))))
