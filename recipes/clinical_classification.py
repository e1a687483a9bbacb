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

    from hf_accum.labelled_texts import LabelledTexts
    from hf_accum.labels import LabelColumn
    from hf_accum.losses import Objective
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
    """Metrics of the hub to compute beside the shipped ones, by name: matthews_correlation,... They are code, and
    need trust_remote_code."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self.split_names("labels", "extra_metrics")
        problem, labels = self.problem, self.labels
        single, multi = problem == "single_label_classification", problem == "multi_label_classification"
        for name in ("text_column", "label_column", "group_column", "train_split", "eval_split"):
            require(getattr(self, name) != "", name, "''", "left out, or not empty")
        require(bool(self.label_separator), "label_separator", repr(self.label_separator), "not empty")
        same, code = self.eval_split == self.train_split, bool(self.extra_metrics) and not self.trust_remote_code
        for holds, flag, rule in (
            (0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)"),
            (0 < self.eval_fraction < 1, "eval_fraction", "between 0 and 1"),
            (len(set(labels)) == len(labels), "labels", "all different"),
            (not same, "eval_split", "another one than --train_split: figures on what was learned say nothing"),
            (not code, "extra_metrics", "left out without --trust_remote_code: metrics of the hub are code"),
            (
                self.eval_split is None or self.group_column is None,
                "group_column",
                "left out with --eval_split, which says what is held out",
            ),
            (len(labels) != 1, "labels", "at least 2 names"),
            (single or self.class_weights == "none", "class_weights", f"none for {problem}"),
            (single or not self.label_smoothing, "label_smoothing", f"0 for {problem}"),
            (multi or not self.positive_weights, "positive_weights", f"empty for {problem}"),
            (problem != "regression" or not labels, "labels", "empty for regression"),
        ):
            require(holds, flag, getattr(self, flag), rule)
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

    from hf_accum.accumulation import accumulate, forget
    from hf_accum.adapters import add_lora, checkpoint_activations
    from hf_accum.checkpoint import BestCheckpoint, Checkpoints
    from hf_accum.classification import TextClassification, build_objective, model_config
    from hf_accum.dropout_masks import draw_masks_fast
    from hf_accum.evaluation import Metric, check_metrics, evaluate_model
    from hf_accum.files import write_json
    from hf_accum.guard import GradientGuard
    from hf_accum.models import load_model, load_tokenizer
    from hf_accum.optimization import build_optimizer, count_steps
    from hf_accum.pipeline import Pipeline
    from hf_accum.plan import what_would_fit
    from hf_accum.ranks import broadcast_weights, ranks_of, start_accelerator, together
    from hf_accum.resume import RunState, facts_of_run, find_resume, stream_state
    from hf_accum.run_folder import claim_folder, start_folder
    from hf_accum.seeding import derive_seed, use_deterministic_algorithms
    from hf_accum.stopping import StopRequest
    from hf_accum.stream import WindowStream
    from hf_accum.summary import describe_run
    from hf_accum.tracking import RunLog
    from hf_accum.tuning import cutter_of, find_capacity, keep_costs, tuning_json
    from recipes.embedded.models import minilm

    stop = StopRequest(config.max_minutes)
    if config.full_determinism:
        use_deterministic_algorithms()
    draw_masks_fast(config.fast_kernels)
    folder = Path(config.output_dir).expanduser().resolve()
    accelerator = start_accelerator(
        trackers=config.trackers, logging_dir=folder, timeout_minutes=config.rank_timeout_minutes
    )
    ranks = ranks_of(accelerator, config.rank_timeout_minutes)

    # What is wrong with the folder or the model is said before the data is read.
    claim = claim_folder(folder, ranks)
    workload(config)
    model_name = config.model or minilm()
    tokenizer = load_tokenizer(model_name, config.doors)

    # The data is read once before any weight is loaded: its labels, its size, its bad rows.
    data = open_data(config, ranks)
    config = replace(config, labels=list(data.labels.names))
    size = {"num_train": data.num_train, "data_digest": data.digest}
    facts = facts_of_run(config, ranks, accelerator.mixed_precision, **size)
    resumed = find_resume(folder, config, facts, ranks)
    objective = build_objective(
        data.labels,
        class_weights=config.class_weights,
        positive_weights=config.positive_weights,
        label_smoothing=config.label_smoothing,
        label_counts=data.label_counts,
    )
    task = TextClassification(
        config.text_column,
        data.labels,
        objective,
        tokenizer,
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
        doors=config.doors,
        quantization=config.quantization,
        precision=accelerator.mixed_precision,
        device=accelerator.device,
        **model_config(data.labels),
    )
    how = {"new_modules": pretrained.new_modules, "dropout": config.dropout, "fused": config.fast_kernels}
    plain_model = add_lora(pretrained.model, config.lora, task_type="SEQ_CLS", **how)
    plain_model.to(accelerator.device)

    tunings = find_capacity(
        config,
        work_of(plain_model, config, data.labels, objective, accelerator.mixed_precision),
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
    optimizer = build_optimizer(plain_model, config.learning_rate, config.weight_decay)
    scheduler = get_scheduler(config.lr_scheduler, optimizer, round(config.warmup_ratio * num_steps), num_steps)
    optimizer = accelerator.prepare_optimizer(optimizer)
    # Not in DistributedDataParallel: `accumulate` sums the gradients, and a copy of them would stand in its buckets.
    model = accelerator.prepare_model(plain_model, evaluation_mode=True)
    best = BestCheckpoint(config.best_metric)
    trained = (plain_model, optimizer, scheduler, accelerator.scaler)
    run_state = RunState(facts, ranks, *trained, cutter, best, tuning.device, tuning.limit_bytes)
    run_state.restore(resumed)
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
        stopping=stop.is_asked,
        start=stream_state(resumed, ranks),
    )
    windows = Pipeline(train_stream, cutter, task.collate, accelerator.device, keeps_failure=True)
    in_order: dict[str, Any] = {"shuffle_block_size": 1, "skip_weightless": False}
    held_out = stream(held_out=True, effective_batch_size=256 * ranks.count, **in_order)
    held_out.first_example()  # there has to be one

    def evaluate() -> Mapping[str, Any]:
        how = (task.collate, objective, task.compact, metrics)
        return evaluate_model(plain_model, held_out, *how, ranks=ranks, cutter=cutter)

    earlier = start_folder(folder, config, ranks, resumed.loaded, claim)
    if accelerator.is_main_process:
        write_json(folder / "tuning.json", tuning_json(tunings))
    steps = (num_steps, config.log_every, resumed.step)
    with RunLog(accelerator, ranks, folder, *steps) as log, stop:
        log.start(
            config,
            describe_run(
                config,
                num_train=data.num_train,
                num_held_out=data.num_held_out,
                bad_rows=data.bad_rows,
                labels_without_rows=data.labels_without_rows,
                num_steps=num_steps,
                model=plain_model,
                new_modules=pretrained.new_modules,
                accelerator=accelerator,
                tunings=tunings,
                earlier=earlier,
                resumed=resumed,
            ),
        )

        checkpoints = Checkpoints(folder, plain_model, task.tokenizer, ranks, config.keep_checkpoints, log.say)
        skips: dict[str, int] = {"num_skips": resumed.num_skips}
        skips |= {"max_skips": config.max_nonfinite_skips if config.on_nonfinite == "skip" else 0}
        guard = GradientGuard(ranks, folder, log.say, has_scaler=accelerator.scaler is not None, **skips)
        step, progress = resumed.step, train_stream.start
        is_through = step >= num_steps or best.is_beaten_for(config.early_stopping_patience)
        for window in () if is_through else windows:  # the examples of one optimizer step
            for micro_batch in window.micro_batches(cutter):
                with accumulate(accelerator, model, micro_batch):
                    inputs, labels = micro_batch.batch
                    loss = objective(model(**inputs).logits, labels)  # summed, in float32
                    window.record(loss)
                    accelerator.backward(loss * micro_batch.scale)
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            learning_rate = scheduler.get_last_lr()[0]
            if guard.refuses(window, grad_norm):  # the loss or the gradient is not finite
                forget(model, window)
                if guard.gave_up:
                    break
            else:
                optimizer.step()
                if not accelerator.optimizer_step_was_skipped:  # as fp16's scaler does on overflow
                    scheduler.step()
            optimizer.zero_grad()
            step, progress = window.step, window.state
            log.step(window, grad_norm, learning_rate)

            is_due = bool(config.save_every) and step % config.save_every == 0
            if config.eval_every and step % config.eval_every == 0 and step < num_steps:
                log.flush()  # what comes now is no part of a step
                figures = evaluate()
                log.evaluation(step, figures)
                if best.update(step, figures):
                    is_due = True
            if is_due and step < num_steps:
                log.flush()
                run_state.save(progress, checkpoints, guard.num_skips)
            if step == num_steps or best.is_beaten_for(config.early_stopping_patience):
                break

        log.flush()
        early = guard.gave_up or windows.failure or stop.agreed(ranks)
        if early:
            checkpoints.wait()
            if step:
                run_state.save(progress, checkpoints, guard.num_skips)
            log.end_early(step, early, together(ranks, checkpoints.wait)[0])
            accelerator.end_training()
            raise early
        checkpoints.wait(hurry=False)
        exported = together(ranks, checkpoints.export)[0]  # before anything else can fail
        figures = evaluate()
        log.evaluation(step, figures)
        is_best = best.update(step, figures) or best.step is None
        if not is_best and together(ranks, lambda: checkpoints.restore_weights(best.step or 0))[0]:
            log.say(f"by {best.metric} the checkpoint of step {best.step} is the best: it is the result")
            broadcast_weights(plain_model, accelerator)
            together(ranks, checkpoints.export)
            step, figures = best.step or step, evaluate()
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
    from hf_accum.classification import build_objective, model_config
    from hf_accum.labels import LabelColumn
    from hf_accum.models import build_without_weights
    from recipes.embedded.models import minilm

    names = () if config.problem == "regression" else tuple(config.labels) or ("no", "yes")
    labels = LabelColumn("label", config.problem, names, config.label_separator)
    objective = build_objective(labels, label_smoothing=config.label_smoothing)
    plain_model = build_without_weights(
        AutoModelForSequenceClassification,
        config.model or minilm(),
        max_length=config.max_length,
        dropout=config.dropout,
        doors=config.doors,
        quantization=config.quantization,
        **model_config(labels),
    )
    how: dict[str, Any] = {"dropout": config.dropout, "fused": config.fast_kernels}
    model = add_lora(plain_model, config.lora, task_type="SEQ_CLS", **how)
    if config.gradient_checkpointing is True:
        checkpoint_activations(plain_model)
    return work_of(model, config, labels, objective, precision)


def work_of(
    model: "nn.Module",
    config: ClinicalClassificationConfig,
    labels: "LabelColumn",
    objective: "Objective",
    precision: str,
) -> "Workload":
    """What is computed with a model, on examples that are made up."""
    from hf_accum.classification import classification_workload
    from hf_accum.optimization import build_optimizer

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
        revision=config.dataset_revision,
        on_bad_row=config.on_bad_row,
        needs_counts=config.class_weights in ("balanced", "sqrt_balanced"),
        needs_size=config.num_epochs is not None,
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = parse(ClinicalClassificationConfig, __doc__ or "", arguments)
    run(lambda: train(config), config)


if __name__ == "__main__":
    main()
