"""The flags that every recipe shares, defined once, and their command line."""

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from hf_accum.errors import OutOfMemory, RankFailed, first_line
from hf_accum.host import prepare_for_limits
from hf_accum.units import parse_bytes

C = TypeVar("C", bound="RecipeConfig")

VARIANTS = {
    "full": "full",
    "full_checkpointing": "full + checkpointing",
    "lora": "LoRA",
    "lora_checkpointing": "LoRA + checkpointing",
    "qlora": "QLoRA",
    "qlora_checkpointing": "QLoRA + checkpointing",
}
"""Ways to train one model, which a plan compares: by their names in the command, what they are called."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters."""

    rank: int = 16
    """Rank of the adapters; 0: no adapters, all weights are trained."""
    alpha: float = 32.0
    """An adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout on an adapter's input."""
    target_modules: list[str] | str = "all-linear"
    """Names (or one regular expression) of the modules to adapt; all-linear: every linear layer but the head."""

    def __post_init__(self) -> None:
        """Check every value."""
        require(self.rank >= 0, "lora.rank", self.rank, "at least 0 (0: full fine-tuning)")
        require(self.alpha > 0 and math.isfinite(self.alpha), "lora.alpha", self.alpha, "above 0")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")
        require(bool(self.target_modules), "lora.target_modules", self.target_modules, "not empty")


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """The flags that every recipe shares."""

    model: str | None = None
    """Hub id or local folder of the model; default: the recipe's embedded one."""
    dataset: str | None = None
    """Hub id, local folder or file (jsonl, csv, parquet); default: the recipe's embedded one."""
    output_dir: str = "runs/latest"
    """The run's folder: config.yaml, metrics.jsonl, evaluation.json, checkpoints/, adapter/ or model/."""
    seed: int = 0
    """Everything random derives from it."""
    full_determinism: bool = False
    """The same command gives the same run, bit for bit: no measured time changes how windows are cut, and torch uses
    deterministic algorithms. Needs a number as micro_batch_size."""
    fast_kernels: bool = True
    """LoRA layers in fewer operations and, on a CPU, dropout masks from fewer random bits: the same training, faster.
    False: as peft and torch have them."""
    max_steps: int | None = None
    """Optimizer steps; training ends by this or by num_epochs, whichever comes first."""
    num_epochs: int | None = 1
    """Passes over the data; null: as many as max_steps takes."""
    effective_batch_size: int = 32
    """Examples per optimizer step, all ranks together."""
    micro_batch_size: int | Literal["auto"] = "auto"
    """The most examples in one forward on one rank; auto: as many as fit, for each length."""
    memory_budget: str | int = "auto"
    """Device memory per rank that the run may use, as 6GiB (on a CPU: of tensors); auto: what is free, less a
    reserve."""
    max_length: int = 512
    """Tokens per example; longer ones are truncated, and counted."""
    learning_rate: float = 3e-4
    """The highest learning rate of the schedule."""
    weight_decay: float = 0.01
    """Of AdamW, on all weights but biases and norms."""
    warmup_ratio: float = 0.1
    """Share of the optimizer steps in which the learning rate rises."""
    max_grad_norm: float = 1.0
    """The gradient of a window is clipped to this norm."""
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"] = (
        "linear"
    )
    """The learning rate's schedule, by transformers' name."""
    dropout: float | None = None
    """Overrides every dropout probability of model and adapter; null: as the model has them."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    quantization: Literal["none", "nf4"] = "none"
    """Weights of the frozen linear layers in 4 bits (QLoRA), by bitsandbytes."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward instead of keeping them; auto: where not one example of max_length
    fits without (found with micro_batch_size auto)."""
    stream_split: Literal["examples", "shards"] = "examples"
    """Over ranks: each keeps its share of one common order, or reads its own files (for large data)."""
    balance_ranks: bool | Literal["auto"] = "auto"
    """Even out the work of each window over the ranks; auto: where there are several and lengths vary."""
    shuffle_block_size: int = 10_000
    """Examples that are shuffled, and held in memory, together; 1: in file order."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be used stops the run, or is left out and counted."""
    log_every: int = 10
    """Optimizer steps between two updates of metrics.jsonl, the display and the trackers."""
    eval_every: int | None = None
    """Optimizer steps between two evaluations; null: only at the end."""
    save_every: int | None = None
    """Optimizer steps between two checkpoints; null: only the best one, where best_metric is set."""
    best_metric: str | None = None
    """The metric (or loss) by which the best checkpoint is kept and, at the end, exported; null: the last."""
    early_stopping_patience: int | None = None
    """Evaluations without a better best_metric after which training ends."""
    trackers: list[str] | str = field(default_factory=list)
    """accelerate's experiment trackers: tensorboard,wandb,mlflow,... (a list, or names with commas between)"""

    def __post_init__(self) -> None:
        """Check every value, before anything heavy is loaded."""
        self.split_names("trackers")
        for name in ("effective_batch_size", "shuffle_block_size", "log_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        size = self.micro_batch_size
        require(size == "auto" or size >= 1, "micro_batch_size", size, "auto, or at least 1")
        require(
            size != "auto" or not self.full_determinism,
            "full_determinism",
            self.full_determinism,
            "false with --micro_batch_size auto, which depends on what is free: give a number",
        )
        if self.memory_budget != "auto":
            try:
                parse_bytes(self.memory_budget)
            except ValueError:
                require(False, "memory_budget", self.memory_budget, "auto, or bytes as 6GiB or 500MB")
        for name in ("max_steps", "num_epochs", "eval_every", "save_every", "early_stopping_patience"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1, or null")
        require(
            self.max_steps is not None or self.num_epochs is not None,
            "num_epochs",
            self.num_epochs,
            "a number where max_steps is null: one of them has to end the training",
        )
        require(self.max_length >= 2, "max_length", self.max_length, "at least 2")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), name, value, "a finite number above 0")
        require(
            self.weight_decay >= 0 and math.isfinite(self.weight_decay),
            "weight_decay",
            self.weight_decay,
            "a finite number, at least 0",
        )
        require(0 <= self.warmup_ratio <= 1, "warmup_ratio", self.warmup_ratio, "in [0, 1]")
        require(self.dropout is None or 0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        require(
            self.quantization == "none" or self.lora.rank > 0,
            "quantization",
            self.quantization,
            "none with --lora.rank 0: quantised weights cannot be trained",
        )
        require(
            self.early_stopping_patience is None or self.best_metric is not None,
            "early_stopping_patience",
            self.early_stopping_patience,
            "null without best_metric, which says what better is",
        )
        require(
            self.best_metric is None or self.eval_every is not None,
            "best_metric",
            self.best_metric,
            "null without eval_every, which says when to look",
        )

    def split_names(self, *flags: str) -> None:
        """Make lists of flags that were given as names with commas between."""
        for flag in flags:
            value = getattr(self, flag)
            if isinstance(value, str):
                # [0,1] arrives as a text, since its items are none.
                listed = value.strip().removeprefix("[").removesuffix("]").split(",")
                names = [name for item in listed if (name := item.strip().strip("'\""))]
                object.__setattr__(self, flag, names)


def require(holds: bool, flag: str, value: object, rule: str) -> None:
    """Refuse a flag's value.

    Raises:
        ValueError: naming the flag, its value and the rule, if it does not hold.
    """
    if not holds:
        raise ValueError(f"--{flag} {value}: has to be {rule}")


def parse(config_class: type[C], description: str, arguments: list[str] | None = None) -> C:
    """A recipe's configuration from the command line: a YAML file by `--config`, then flags on top.

    `--help` and `--print_config` need no torch. A value that is not allowed ends the process with status 2 and
    a message that says which, and why.
    """
    from jsonargparse import ArgumentParser, set_dumper, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_dumper("yaml", _to_yaml)
    parser = ArgumentParser(prog=Path(sys.argv[0]).name, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the flags below.")
    parser.add_class_arguments(config_class)
    parsed = parser.parse_args(arguments)
    try:
        values = vars(parser.instantiate(parsed))
        return config_class(**{f.name: values[f.name] for f in dataclasses.fields(config_class)})
    except ValueError as error:
        parser.error(str(error))


def run(work: Callable[[], object]) -> None:
    """Run a recipe's work; a user's mistake ends the process with status 2 and one message, no traceback.

    So it does on the ranks where the mistake did not show.
    """
    prepare_for_limits()
    try:
        work()
    except (ValueError, RankFailed, OutOfMemory) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except (RuntimeError, MemoryError) as error:
        from hf_accum.oom import Failure, classify

        if classify(error) is not Failure.OUT_OF_MEMORY:
            raise
        # In a micro-batch it starts the window anew; the step of the optimizer cannot be taken back.
        print(
            f"error: memory ran out outside of the micro-batches, as in the optimizer's step ({first_line(error)}); "
            "a smaller --memory_budget or --micro_batch_size, or --lora.rank, leaves more for it",
            file=sys.stderr,
        )
        raise SystemExit(2) from error


def as_dict(config: RecipeConfig) -> dict[str, Any]:
    """The configuration as plain values, nested as its flags are."""
    return dataclasses.asdict(config)


def write_config(config: RecipeConfig, folder: Path) -> None:
    """Write `config.yaml`, which `--config` reads back to the same configuration."""
    from hf_accum.files import write_atomically

    write_atomically(folder / "config.yaml", _to_yaml(as_dict(config)))


def _to_yaml(values: dict[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Puts quotes on texts that jsonargparse, but not PyYAML, would read back as a number: 1e5."""

    number = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$")
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)
