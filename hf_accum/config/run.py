"""The flags of a run: its folder, its steps between this and that, its checkpoints, its end."""

from dataclasses import dataclass, field

from hf_accum.config.validation import (
    ABOVE_0,
    ABOVE_0_OR_NULL,
    COUNT,
    COUNT_OR_NULL,
    require,
    require_not_empty,
)


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Run and checkpoints."""

    preview: bool = False
    """Show three rows as the model will see them (tokens, labels, what is cut), and end: nothing is trained or
    written."""
    output_dir: str = "runs/latest"
    """The run's folder: config.yaml, metrics.jsonl, evaluation.json, checkpoints/, adapter/ or model/."""
    seed: int = 0
    """Everything random derives from it."""
    num_seeds: int = field(default=1, metadata=COUNT)
    """So many runs, one after the other, into OUTPUT_DIR/seed-0, seed-1, ...: with seed, seed + 1, ... Mean and
    standard deviation of their figures are in OUTPUT_DIR/seeds.json."""
    full_determinism: bool = False
    """The same command gives the same run, bit for bit: no measured time changes how windows are cut, and torch uses
    deterministic algorithms. Needs a number as micro_batch_size."""
    log_every: int = field(default=10, metadata=COUNT)
    """Optimizer steps between two updates of metrics.jsonl, the display and the trackers."""
    eval_every: int | None = field(default=None, metadata=COUNT_OR_NULL)
    """Optimizer steps between two evaluations; null: only at the end."""
    save_every: int | None = field(default=100, metadata=COUNT_OR_NULL)
    """Optimizer steps between two checkpoints; null: only the best one, with best_metric, and when stopped."""
    keep_checkpoints: int = field(default=2, metadata=COUNT)
    """How many checkpoints are kept, the newest ones; the best one is too."""
    best_metric: str | None = None
    """The metric (or loss) by which the best checkpoint is kept and, at the end, exported; null: the last."""
    early_stopping_patience: int | None = field(default=None, metadata=COUNT_OR_NULL)
    """Evaluations without a better best_metric after which training ends."""
    resume: str = "auto"
    """auto: an unfinished run in output_dir goes on from its newest checkpoint; never; or a checkpoint's folder."""
    allow_changes: list[str] | str = field(default_factory=list)
    """Settings that may differ from those of the run that goes on, by name: learning_rate,... (data_digest: the
    data's content; base: the weights that are not trained)."""
    allow_cut_dependence: bool = False
    """Train a model whose gradient depends on how windows are cut into micro-batches, which a run finds at its start
    and refuses: padding that reaches its results, say. The same run in other memory then trains something else."""
    max_minutes: float | None = field(default=None, metadata=ABOVE_0_OR_NULL)
    """Minutes from its start after which the run saves a checkpoint and ends; null: no limit."""
    rank_timeout_minutes: float = field(default=10.0, metadata=ABOVE_0)
    """A rank that waits this long for another one (which may be saving, or evaluating) ends with an error."""
    trackers: list[str] | str = field(default_factory=list)
    """accelerate's experiment trackers: tensorboard,wandb,mlflow,... (a list, or names with commas between)."""
    debug: bool = False
    """Show where an error came from: its traceback."""


def check_run(config: RunFlags) -> None:
    """Check how the flags of a run go together."""
    require_not_empty(config, "output_dir", "resume")
    require(
        config.early_stopping_patience is None or config.best_metric is not None,
        "early_stopping_patience",
        config.early_stopping_patience,
        "null without best_metric, which says what better is",
    )
    require(
        config.num_seeds == 1 or config.resume in ("auto", "never"),
        "resume",
        config.resume,
        "auto or never with `num_seeds` above 1: each of the runs has its own checkpoints",
    )
    require(
        config.best_metric is None or config.eval_every is not None,
        "best_metric",
        config.best_metric,
        "null without eval_every, which says when to look",
    )
