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
    from torch import nn
    from torch.optim import Optimizer

    from hf_accum.labelled_texts import LabelledTexts
    from hf_accum.memory import Workload
    from hf_accum.ranks import Ranks


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
    from hf_accum.classification import (
        TextClassification,
        build_objective,
        classification_workload,
        model_config,
    )
    from hf_accum.dropout_masks import draw_masks_fast
    from hf_accum.evaluation import Metric, check_metrics, evaluate_model
    from hf_accum.files import write_json
    from hf_accum.models import load_model, load_tokenizer
    from hf_accum.optimization import build_optimizer, count_steps
    from hf_accum.pipeline import Pipeline
    from hf_accum.plan import what_would_fit
    from hf_accum.ranks import broadcast_weights, ranks_of, start_accelerator
    from hf_accum.seeding import derive_seed, use_deterministic_algorithms
    from hf_accum.stream import WindowStream
    from hf_accum.summary import describe_run
    from hf_accum.tracking import RunLog
    from hf_accum.tuning import cutter_of, find_capacity, keep_costs, tuning_json
    from recipes.embedded.models import minilm

    if config.full_determinism:
        use_deterministic_algorithms()
    draw_masks_fast(config.fast_kernels)
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
        quantization=config.quantization,
        precision=accelerator.mixed_precision,
        device=accelerator.device,
        **model_config(data.labels),
    )
    how = {"new_modules": pretrained.new_modules, "dropout": config.dropout, "fused": config.fast_kernels}
    plain_model = add_lora(pretrained.model, config.lora, task_type="SEQ_CLS", **how)
    plain_model.to(accelerator.device)

    def optimizer_of(model: "nn.Module") -> "Optimizer":
        return build_optimizer(model, config.learning_rate, config.weight_decay)

    tunings = find_capacity(
        config,
        classification_workload(
            plain_model,
            optimizer_of,
            labels=data.labels,
            objective=objective,
            max_length=config.max_length,
            precision=accelerator.mixed_precision,
        ),
        ranks,
        accelerator.device,
        checkpoint=lambda: checkpoint_activations(pretrained.model),
        advise=lambda budget_bytes: what_would_fit(
            lambda changed: workload(changed, accelerator.mixed_precision), config, budget_bytes
        ),
    )
    tuning = tunings[ranks.index]
    cutter = cutter_of(tuning, accelerator.device, learns=not config.full_determinism)
    num_steps = count_steps(data.num_train, config.effective_batch_size, config.num_epochs, config.max_steps)
    optimizer = optimizer_of(plain_model)
    scheduler = get_scheduler(config.lr_scheduler, optimizer, round(config.warmup_ratio * num_steps), num_steps)
    optimizer = accelerator.prepare_optimizer(optimizer)
    # Not in DistributedDataParallel: `accumulate` sums the gradients, and a copy of them would stand in its buckets.
    model = accelerator.prepare_model(plain_model, evaluation_mode=True)
    broadcast_weights(plain_model, accelerator)

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

    train_stream = stream(
        held_out=False,
        effective_batch_size=config.effective_batch_size,
        num_epochs=config.num_epochs,
        shuffle_block_size=config.shuffle_block_size,
        balance=cutter.speed_at_step if config.balance_ranks else None,
    )
    windows = Pipeline(train_stream, cutter, task.collate, accelerator.device)
    held_out = stream(
        held_out=True, effective_batch_size=256 * ranks.count, shuffle_block_size=1, skip_weightless=False
    )
    held_out.first_example()  # there has to be one

    def evaluate() -> Mapping[str, Any]:
        return evaluate_model(
            plain_model,
            held_out,
            task.collate,
            objective,
            task.compact,
            metrics,
            ranks=ranks,
            cutter=cutter,
        )

    earlier = start_folder(folder, config, ranks)
    if accelerator.is_main_process:
        write_json(folder / "tuning.json", tuning_json(tunings))
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
                tunings=tunings,
                earlier=earlier,
            ),
        )

        step = 0
        for window in windows:  # the examples of one optimizer step
            for micro_batch in window.micro_batches(cutter):
                with accumulate(accelerator, model, micro_batch):
                    inputs, labels = micro_batch.batch
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
        tunings = keep_costs(tuning, cutter, ranks)
        if accelerator.is_main_process:
            write_json(folder / "tuning.json", tuning_json(tunings))
    accelerator.end_training()
    return figures


def workload(config: ClinicalClassificationConfig, precision: str = "no") -> "Workload":
    """What `train` computes, from the model's config alone: no weights, no data. For `hf-accum plan`."""
    from transformers import AutoModelForSequenceClassification

    from hf_accum.adapters import add_lora, checkpoint_activations
    from hf_accum.classification import build_objective, classification_workload, model_config
    from hf_accum.labels import LabelColumn
    from hf_accum.models import build_without_weights
    from hf_accum.optimization import build_optimizer
    from recipes.embedded.models import minilm

    names = () if config.problem == "regression" else tuple(config.labels) or ("no", "yes")
    labels = LabelColumn("label", config.problem, names, config.label_separator)
    objective = build_objective(labels, label_smoothing=config.label_smoothing)
    plain_model = build_without_weights(
        AutoModelForSequenceClassification,
        config.model or minilm(),
        max_length=config.max_length,
        dropout=config.dropout,
        quantization=config.quantization,
        **model_config(labels),
    )
    how: dict[str, Any] = {"dropout": config.dropout, "fused": config.fast_kernels}
    model = add_lora(plain_model, config.lora, task_type="SEQ_CLS", **how)
    if config.gradient_checkpointing is True:
        checkpoint_activations(plain_model)
    return classification_workload(
        model,
        lambda model: build_optimizer(model, config.learning_rate, config.weight_decay),
        labels=labels,
        objective=objective,
        max_length=config.max_length,
        precision=precision,
    )


def open_data(config: ClinicalClassificationConfig, ranks: "Ranks") -> "LabelledTexts":
    """The dataset of the flags, or the embedded one with the columns that it has."""
    from hf_accum.labelled_texts import open_labelled_texts
    from hf_accum.ranks import together
    from recipes.embedded.synopses import clinical_synopses

    dataset, group_column, label_column = config.dataset, config.group_column, config.label_column
    if dataset is None:
        dataset = together(ranks, clinical_synopses)[ranks.index]
        group_column = group_column or "disease"
        multi = config.problem == "multi_label_classification"
        label_column = label_column or ("modes" if multi else "inheritance")
    return open_labelled_texts(
        dataset,
        ranks,
        text_column=config.text_column,
        label_column=label_column or "label",
        group_column=group_column or config.text_column,
        problem=config.problem,
        label_names=tuple(config.labels),
        label_separator=config.label_separator,
        train_split=config.train_split,
        eval_split=config.eval_split,
        eval_fraction=config.eval_fraction,
        on_bad_row=config.on_bad_row,
        needs_counts=config.class_weights in ("balanced", "sqrt_balanced"),
        needs_size=config.num_epochs is not None,
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = parse(ClinicalClassificationConfig, __doc__ or "", arguments)
    run(lambda: train(config))


if __name__ == "__main__":
    main()
