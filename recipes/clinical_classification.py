"""Fine-tune a clinical-text encoder to classify texts: one label each, several, or a number.

By default MiniLM with LoRA learns to tell the mode of inheritance of rare diseases from their clinical synopses.
One's own model and data go by flags:

    accelerate launch -m recipes.clinical_classification --model emilyalsentzer/Bio_ClinicalBERT \
        --dataset notes.jsonl --text_column note --label_column diagnosis --group_column patient
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_accum.config import RecipeConfig, parse, require, run

# Everything heavy is imported by `train`: help and a wrong flag need no torch.
if TYPE_CHECKING:
    from hf_accum.labels import LabelColumn
    from hf_accum.ranks import Ranks
    from hf_accum.source import Row, Source


@dataclass(frozen=True, kw_only=True)
class ClinicalClassificationConfig(RecipeConfig):
    """The flags of this recipe, and those that every recipe shares."""

    text_column: str = "text"
    """Column with the text."""
    label_column: str | None = None
    """Column with the label; default: label, or that of the embedded dataset."""
    group_column: str | None = None
    """Rows with the same value here (a patient, a disease) are never on both sides of the held-out split;
    default: the text itself, or the disease of the embedded dataset."""
    problem: Literal["single_label_classification", "multi_label_classification", "regression"] = (
        "single_label_classification"
    )
    """One class for each text, any number of labels, or a number."""
    labels: list[str] | str = field(default_factory=list)
    """Names of the labels, in order (a list, or with commas between); default: those in the data, sorted."""
    label_separator: str = "|"
    """Between the labels of one text, where they are one string (multi_label_classification)."""
    class_weights: Literal["none", "balanced", "sqrt_balanced"] | list[float] = "none"
    """Weight of each class in the loss: balanced is n / (classes * n of the class), sqrt_balanced its square
    root, or a number for each label in order (single_label_classification)."""
    positive_weights: list[float] = field(default_factory=list)
    """What the loss of a present label is multiplied by, for each label (multi_label_classification)."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes (single_label_classification)."""
    train_split: str = "train"
    """Split of the dataset to train on."""
    eval_split: str | None = None
    """Split of the dataset to evaluate on; default: a held-out share of the training split."""
    eval_fraction: float = 0.1
    """The share of groups held out where there is no eval_split."""
    extra_metrics: list[str] | str = field(default_factory=list)
    """Metrics of the hub to compute beside the shipped ones, by name: matthews_correlation,..."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self.split_names("labels", "extra_metrics")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)")
        require(0 < self.eval_fraction < 1, "eval_fraction", self.eval_fraction, "between 0 and 1")
        require(bool(self.label_separator), "label_separator", repr(self.label_separator), "not empty")
        require(len(set(self.labels)) == len(self.labels), "labels", self.labels, "all different")
        require(
            self.eval_split is None or self.group_column is None,
            "group_column",
            self.group_column,
            "left out with --eval_split, which says what is held out",
        )
        require(len(self.labels) != 1, "labels", self.labels, "at least 2 names")
        single = self.problem == "single_label_classification"
        require(
            single or self.class_weights == "none",
            "class_weights",
            self.class_weights,
            f"none for {self.problem}",
        )
        require(
            single or not self.label_smoothing,
            "label_smoothing",
            self.label_smoothing,
            f"0 for {self.problem}",
        )
        multi = self.problem == "multi_label_classification"
        require(
            multi or not self.positive_weights,
            "positive_weights",
            self.positive_weights,
            f"empty for {self.problem}",
        )
        require(self.problem != "regression" or not self.labels, "labels", self.labels, "empty for regression")
        for flag in ("class_weights", "positive_weights"):
            weights = getattr(self, flag)
            if isinstance(weights, list) and (weights or flag == "class_weights"):
                require(bool(self.labels), flag, weights, "given together with --labels, which says their order")
                require(
                    len(weights) == len(self.labels),
                    flag,
                    weights,
                    f"one for each of the {len(self.labels)} labels",
                )
                require(all(w > 0 and math.isfinite(w) for w in weights), flag, weights, "finite and above 0")


def train(config: ClinicalClassificationConfig) -> Mapping[str, Any]:
    """Run the recipe; returns the final evaluation."""
    import torch
    from transformers import AutoModelForSequenceClassification, get_scheduler

    from hf_accum.accumulation import accumulate
    from hf_accum.adapters import add_lora, checkpoint_activations
    from hf_accum.checkpoint import BestCheckpoint, Checkpoints, start_folder
    from hf_accum.classification import TextClassification, build_objective
    from hf_accum.evaluation import Metric, check_metrics, evaluate_model
    from hf_accum.models import load_model, load_tokenizer
    from hf_accum.optimization import build_optimizer, count_steps
    from hf_accum.ranks import broadcast_weights, ranks_of, start_accelerator
    from hf_accum.seeding import derive_seed
    from hf_accum.stream import WindowStream
    from hf_accum.summary import describe_run
    from hf_accum.tracking import RunLog
    from recipes.embedded.models import minilm

    folder = Path(config.output_dir).expanduser().resolve()
    accelerator = start_accelerator(trackers=config.trackers, logging_dir=folder)
    ranks = ranks_of(accelerator)

    # The data is read once before any weight is loaded: its labels, its size, its bad rows.
    data = open_data(config, ranks)
    config = replace(config, labels=list(data.labels.names))
    objective = build_objective(
        data.labels,
        class_weights=config.class_weights,
        positive_weights=config.positive_weights,
        label_smoothing=config.label_smoothing,
        label_counts=data.label_counts,
    )
    model_name = config.model or minilm()
    task = TextClassification(
        config.text_column,
        data.labels,
        objective,
        load_tokenizer(model_name),
        config.max_length,
        accelerator.device,
    )
    metrics = [task.metric(), *(Metric(name, {}) for name in config.extra_metrics)]
    num_logits = len(data.labels.names) or 1
    sample = torch.eye(max(2, num_logits))[:, :num_logits]  # each class once
    check_metrics(metrics, config.best_metric, task.compact(sample))

    torch.manual_seed(derive_seed(config.seed, "model"))  # the new head and the adapters
    pretrained = load_model(
        AutoModelForSequenceClassification,
        model_name,
        task.tokenizer,
        max_length=config.max_length,
        dropout=config.dropout,
        **task.model_config(),
    )
    plain_model = add_lora(
        pretrained.model,
        config.lora,
        task_type="SEQ_CLS",
        new_modules=pretrained.new_modules,
        dropout=config.dropout,
    )
    if config.gradient_checkpointing:
        checkpoint_activations(pretrained.model)
    num_steps = count_steps(data.num_train, config.effective_batch_size, config.num_epochs, config.max_steps)
    optimizer = build_optimizer(plain_model, config.learning_rate, config.weight_decay)
    scheduler = get_scheduler(config.lr_scheduler, optimizer, round(config.warmup_ratio * num_steps), num_steps)
    model, optimizer = accelerator.prepare(plain_model, optimizer)

    def stream(held_out: bool, **how: Any) -> WindowStream[Any]:
        return WindowStream(
            data.eval_source if held_out else data.source,
            lambda row: task.prepare(row) if data.is_held_out(row, held_out) == held_out else None,
            task.encode,
            ranks=ranks,
            seed=config.seed,
            split=config.stream_split,
            on_bad_row=config.on_bad_row,
            **how,
        )

    windows = stream(
        held_out=False,
        effective_batch_size=config.effective_batch_size,
        num_epochs=config.num_epochs,
        shuffle_block_size=config.shuffle_block_size,
    )
    held_out = stream(
        held_out=True, effective_batch_size=256 * ranks.count, shuffle_block_size=1, skip_weightless=False
    )
    held_out.first_example()  # there has to be one

    def evaluate() -> Mapping[str, Any]:
        return evaluate_model(
            plain_model,
            held_out,
            task.batch,
            objective,
            task.compact,
            metrics,
            ranks=ranks,
            micro_batch_size=config.micro_batch_size,
        )

    earlier = start_folder(folder, config, ranks)
    checkpoints = Checkpoints(folder, plain_model, task.tokenizer, is_main=accelerator.is_main_process)
    best = BestCheckpoint(config.best_metric)
    with RunLog(accelerator, ranks, folder, num_steps=num_steps, log_every=config.log_every) as log:
        log.start(
            config,
            describe_run(
                config,
                num_train=data.num_train,
                num_held_out=data.num_held_out,
                bad_rows=data.bad_rows,
                num_steps=num_steps,
                model=plain_model,
                new_modules=pretrained.new_modules,
                accelerator=accelerator,
                earlier=earlier,
            ),
        )

        step = 0
        for window in windows:  # the examples of one optimizer step
            for micro_batch in window.micro_batches(config.micro_batch_size):
                with accumulate(accelerator, model, micro_batch):
                    inputs, labels = task.batch(micro_batch.examples)
                    loss = objective(model(**inputs).logits, labels)  # summed, in float32
                    window.record(loss)
                    accelerator.backward(loss * micro_batch.scale)
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            learning_rate = scheduler.get_last_lr()[0]
            optimizer.step()
            if not accelerator.optimizer_step_was_skipped:  # as fp16's scaler does on overflow
                scheduler.step()
            optimizer.zero_grad()
            step = window.step
            log.step(window, grad_norm, learning_rate)

            if config.save_every and step % config.save_every == 0:
                checkpoints.save(step)
            if config.eval_every and step % config.eval_every == 0 and step < num_steps:
                log.flush()  # what comes now is no part of a step
                figures = evaluate()
                log.evaluation(step, figures)
                if best.update(step, figures):
                    checkpoints.save_best(step)
            if step == num_steps or best.is_beaten_for(config.early_stopping_patience):
                break

        log.flush()
        exported = checkpoints.export()  # before anything else can fail
        figures = evaluate()
        log.evaluation(step, figures)
        if not best.update(step, figures) and best.step is not None:
            log.say(f"by {best.metric} the checkpoint of step {best.step} is the best: it is the result")
            if accelerator.is_main_process:
                checkpoints.load(best.step)
            broadcast_weights(plain_model, accelerator)
            checkpoints.export()
            step, figures = best.step, evaluate()
        log.finish(step, figures, windows, exported)
    accelerator.end_training()
    return figures


@dataclass(frozen=True)
class Data:
    """The dataset, and what one pass over it found (None where no pass was needed)."""

    source: "Source"
    eval_source: "Source"
    labels: "LabelColumn"
    group_column: str
    eval_fraction: float | None  # None: there is a split of its own to evaluate on
    num_train: int | None = None
    num_held_out: int | None = None
    label_counts: Mapping[str, int] = field(default_factory=dict)
    bad_rows: Mapping[str, int] = field(default_factory=dict)

    def is_held_out(self, row: "Row", of_eval_source: bool) -> bool:
        """Whether a row is not to train on."""
        from hf_accum.survey import is_held_out

        if self.eval_fraction is None:
            return of_eval_source
        return is_held_out(row, self.group_column, self.eval_fraction)


def open_data(config: ClinicalClassificationConfig, ranks: "Ranks") -> Data:
    """Open the dataset and, where labels, class weights or the number of steps depend on it, read it once.

    Raises:
        ValueError: for a dataset, column or row that cannot be used.
    """
    from hf_accum.labels import LabelColumn, sorted_names
    from hf_accum.ranks import together
    from hf_accum.source import open_source
    from hf_accum.survey import Survey, survey
    from hf_accum.text import text_of
    from recipes.embedded.synopses import clinical_synopses

    dataset, group_column, label_column = config.dataset, config.group_column, config.label_column
    if dataset is None:
        dataset = together(ranks, clinical_synopses)[ranks.index]
        group_column = group_column or "disease"
        multi = config.problem == "multi_label_classification"
        label_column = label_column or ("modes" if multi else "inheritance")
    group_column, label_column = group_column or config.text_column, label_column or "label"

    columns = [config.text_column, label_column] + ([] if config.eval_split else [group_column])
    source = open_source(dataset, config.train_split, columns=columns)
    eval_source = open_source(dataset, config.eval_split, columns=columns) if config.eval_split else source
    class_names = source.class_names.get(label_column, ())
    names = tuple(config.labels) or class_names
    labels = LabelColumn(label_column, config.problem, names, config.label_separator, bool(class_names))
    data = Data(source, eval_source, labels, group_column, None if config.eval_split else config.eval_fraction)
    needs_names = config.problem != "regression" and not names
    needs_counts = config.class_weights in ("balanced", "sqrt_balanced")
    if config.num_epochs is None and not needs_names and not needs_counts:
        return data

    def observe(of_eval_source: bool) -> Survey:
        def one(row: "Row") -> tuple[bool, tuple[str, ...]]:
            text_of(row, config.text_column)
            return data.is_held_out(row, of_eval_source), labels.keys(row)

        return survey(data.eval_source if of_eval_source else data.source, one, ranks, config.on_bad_row)

    found = observe(of_eval_source=False)
    if config.eval_split:
        found.add(observe(of_eval_source=True))
    if not found.num_train or not found.num_held_out:
        raise ValueError(
            f"the dataset has {found.num_train} usable examples to train on and {found.num_held_out} held out "
            f"({found.bad_rows.total()} bad rows): both are needed; give more rows, --eval_split or another "
            "--eval_fraction"
        )
    if needs_names:
        names = sorted_names([*found.train_labels, *found.held_out_labels], label_column)
    return replace(
        data,
        labels=replace(labels, names=names),
        num_train=found.num_train,
        num_held_out=found.num_held_out,
        label_counts=found.train_labels,
        bad_rows=found.bad_rows,
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = parse(ClinicalClassificationConfig, __doc__ or "", arguments)
    run(lambda: train(config))


if __name__ == "__main__":
    main()
