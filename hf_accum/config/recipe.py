"""The flags that every recipe shares, defined once, and their command line."""

import math
from dataclasses import dataclass, field
from typing import Literal

from hf_accum.byte_sizes import parse_bytes
from hf_accum.config.lora import LoraConfig
from hf_accum.config.trust import Doors
from hf_accum.config.validation import check_texts, require, require_count, require_finite


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """The flags that every recipe shares."""

    model: str | None = None
    """Hub id or local folder of the model; default: the recipe's embedded one."""
    dataset: str | None = None
    """Hub id, local folder or file (jsonl, csv, parquet); default: the recipe's embedded one."""
    train_split: str = "train"
    """Split of the dataset to train on."""
    eval_split: str | None = None
    """Split of the dataset to evaluate on; default: a held-out share of the training split."""
    eval_fraction: float = 0.1
    """The share of groups held out where there is no eval_split."""
    group_column: str | None = None
    """Rows with the same value here (a patient, a disease) are never on both sides of the held-out split; default:
    the recipe's own."""
    revision: str | None = None
    """Branch, tag or commit of the hub's model repository: a commit pins what is downloaded."""
    dataset_revision: str | None = None
    """Branch, tag or commit of the hub's dataset repository."""
    trust_remote_code: bool = False
    """Run code that comes with the model, or a metric of the hub; read it first. Code of a dataset is never run."""
    code_revision: str | None = None
    """Branch, tag or commit of the model's code, where that is in another repository (trust_remote_code)."""
    allow_pickle_weights: bool = False
    """Read weights from pytorch_model.bin where there is no model.safetensors: tensors only, nothing is run."""
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
    max_probe_seconds: float | None = 5.0
    """micro_batch_size auto tries none that computes longer where memory is plenty (one and a half times what a
    window takes), but for a quarter of a window: it would be no faster; null: the largest is found all the same."""
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
    save_every: int | None = 100
    """Optimizer steps between two checkpoints; null: only the best one, with best_metric, and when stopped."""
    keep_checkpoints: int = 2
    """How many checkpoints are kept, the newest ones; the best one is too."""
    resume: str = "auto"
    """auto: an unfinished run in output_dir goes on from its newest checkpoint; never; or a checkpoint's folder."""
    allow_changes: list[str] | str = field(default_factory=list)
    """Settings that may be others than those of the run that goes on, by name: learning_rate,... (data_digest: the
    data's content, base: the weights that are not trained)"""
    best_metric: str | None = None
    """The metric (or loss) by which the best checkpoint is kept and, at the end, exported; null: the last."""
    early_stopping_patience: int | None = None
    """Evaluations without a better best_metric after which training ends."""
    max_minutes: float | None = None
    """Minutes from its start after which the run saves a checkpoint and ends; null: no limit."""
    rank_timeout_minutes: float = 10.0
    """A rank that waits this long for another one (which may be saving, or evaluating) ends with an error."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A window whose loss or gradient is not finite stops the run, or is left out; its examples' ids go to
    nonfinite.jsonl."""
    max_nonfinite_skips: int = 10
    """How many windows on_nonfinite skip may leave out before the run stops all the same."""
    trackers: list[str] | str = field(default_factory=list)
    """accelerate's experiment trackers: tensorboard,wandb,mlflow,... (a list, or names with commas between)"""
    debug: bool = False
    """Show where an error came from: its traceback."""

    def __post_init__(self) -> None:
        """Check every value, before anything heavy is loaded."""
        self.split_names("trackers", "allow_changes")
        check_texts(vars(self))
        texts = "model dataset output_dir resume revision dataset_revision code_revision train_split eval_split"
        for name in (*texts.split(), "group_column"):
            require(getattr(self, name) != "", name, "''", "left out, or not empty")
        for name in (
            "effective_batch_size",
            "shuffle_block_size",
            "log_every",
            "max_nonfinite_skips",
            "keep_checkpoints",
        ):
            require_count(name, getattr(self, name))
        if self.micro_batch_size != "auto":
            require_count("micro_batch_size", self.micro_batch_size, "auto, or at least 1")
        if self.memory_budget != "auto":
            try:
                parse_bytes(self.memory_budget)
            except ValueError:
                require(False, "memory_budget", self.memory_budget, "auto, or bytes as 6GiB or 500MB")
        for name in ("max_steps", "num_epochs", "eval_every", "save_every", "early_stopping_patience"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name), "at least 1, or null")
        for name in ("max_minutes", "rank_timeout_minutes", "max_probe_seconds"):
            if getattr(self, name) is not None:
                require_finite(name, getattr(self, name), 0.0, math.inf)
        require_count("max_length", self.max_length, "at least 2", least=2)
        # Beyond these nothing is learned: weights become infinite, or the gradient zero.
        require_finite("learning_rate", self.learning_rate, 0.0, 100.0)
        require_finite("max_grad_norm", self.max_grad_norm, 1e-12, math.inf)
        decay, number = self.weight_decay, self.micro_batch_size != "auto"
        for holds, flag, rule in (
            (0 < self.eval_fraction < 1, "eval_fraction", "between 0 and 1"),
            (
                self.eval_split != self.train_split,
                "eval_split",
                "another one than `train_split`: figures on what was learned say nothing",
            ),
            (
                self.eval_split is None or self.group_column is None,
                "group_column",
                "left out with `eval_split`, which says what is held out",
            ),
            (
                number or not self.full_determinism,
                "full_determinism",
                "false with `micro_batch_size auto`, which depends on what is free: give a number",
            ),
            (
                self.max_steps is not None or self.num_epochs is not None,
                "num_epochs",
                "a number where max_steps is null: one of them has to end the training",
            ),
            (decay >= 0 and math.isfinite(decay), "weight_decay", "a finite number, at least 0"),
            # A step multiplies a weight by 1 - learning_rate * weight_decay.
            (
                decay * self.learning_rate < 1,
                "weight_decay",
                f"below 1 / learning_rate ({1 / self.learning_rate:g}): every step would turn the weights around",
            ),
            (
                self.code_revision is None or self.trust_remote_code,
                "code_revision",
                "left out without `trust_remote_code`: no code of the model is run",
            ),
            (0 <= self.warmup_ratio <= 1, "warmup_ratio", "in [0, 1]"),
            (self.dropout is None or 0 <= self.dropout < 1, "dropout", "in [0, 1)"),
            (
                self.quantization == "none" or self.lora.rank > 0,
                "quantization",
                "none with `lora.rank 0`: quantised weights cannot be trained",
            ),
            (
                self.early_stopping_patience is None or self.best_metric is not None,
                "early_stopping_patience",
                "null without best_metric, which says what better is",
            ),
            (
                self.best_metric is None or self.eval_every is not None,
                "best_metric",
                "null without eval_every, which says when to look",
            ),
        ):
            require(holds, flag, getattr(self, flag), rule)

    @property
    def doors(self) -> Doors:
        """What may come in with the model."""
        return Doors(self.revision, self.trust_remote_code, self.code_revision, self.allow_pickle_weights)

    def split_names(self, *flags: str) -> None:
        """Make lists of flags that were given as names with commas between."""
        for flag in flags:
            value = getattr(self, flag)
            if isinstance(value, str):
                # [0,1] arrives as a text, since its items are none.
                listed = value.strip().removeprefix("[").removesuffix("]").split(",")
                names = [name for item in listed if (name := item.strip().strip("'\""))]
                object.__setattr__(self, flag, names)
