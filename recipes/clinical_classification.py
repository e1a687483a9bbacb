"""Fine-tune a clinical-text encoder to classify texts: one label each, several, or a number.

By default MiniLM with LoRA learns to tell the mode of inheritance of rare diseases from their clinical synopses.
One's own model and data go by flags:

    accelerate launch -m recipes.clinical_classification --model emilyalsentzer/Bio_ClinicalBERT \
        --dataset notes.jsonl --text_column note --label_column diagnosis --group_column patient
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from hf_accum.cli.exit import run
from hf_accum.cli.parser import parse
from hf_accum.config.recipe import RecipeConfig, require

# Everything heavy is imported by `train`: help and a wrong flag need no torch.
if TYPE_CHECKING:
    from torch import nn

    from hf_accum.accumulation.losses import Objective
    from hf_accum.distributed.ranks import Ranks
    from hf_accum.tasks.labels import LabelColumn
    from hf_accum.tasks.text_classification.data import LabelledTexts
    from hf_accum.tuner.workload import Workload


@dataclass(frozen=True, kw_only=True)
class ClinicalClassificationConfig(RecipeConfig):
    """The flags of this recipe, and those that every recipe shares."""

    text_column: str = "text"
    """Column with the text."""
    label_column: str | None = None
    """Column with the label; default: label, or that of the embedded dataset."""
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
    extra_metrics: list[str] | str = field(default_factory=list)
    """Metrics of the hub to compute beside the shipped ones, by name: matthews_correlation,... They are code, and
    need trust_remote_code."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self.split_names("labels", "extra_metrics")
        problem, labels = self.problem, self.labels
        single, multi = problem == "single_label_classification", problem == "multi_label_classification"
        for name in ("text_column", "label_column"):
            require(getattr(self, name) != "", name, "''", "left out, or not empty")
        require(bool(self.label_separator), "label_separator", repr(self.label_separator), "not empty")
        code = bool(self.extra_metrics) and not self.trust_remote_code
        for holds, flag, rule in (
            (0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)"),
            (len(set(labels)) == len(labels), "labels", "all different"),
            (not code, "extra_metrics", "left out without `trust_remote_code`: metrics of the hub are code"),
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
                require(bool(self.labels), flag, weights, "given together with `labels`, which says their order")
                require(
                    len(weights) == len(self.labels),
                    flag,
                    weights,
                    f"one for each of the {len(self.labels)} labels",
                )
                require(all(w > 0 and math.isfinite(w) for w in weights), flag, weights, "finite and above 0")


def train(config: ClinicalClassificationConfig) -> Mapping[str, Any]:
    """Run the recipe; returns the final evaluation."""
    from transformers import AutoModelForSequenceClassification

    from hf_accum.accumulation.accumulate import accumulate, discard_gradients
    from hf_accum.models.tokenizers import load_tokenizer
    from hf_accum.models.trainable import load_trainable
    from hf_accum.run.training import StartedRun, Training
    from hf_accum.tasks.text_classification.task import TextClassification, build_objective, model_config
    from recipes.embedded.models import minilm

    # What is wrong with the launch, the folder or the model is said before the data is read.
    run = StartedRun(config)
    workload(config)
    model_name = config.model or minilm()
    tokenizer = load_tokenizer(model_name, config.doors)

    # The data is read once before any weight is loaded: its labels, its size, its bad rows.
    data = open_data(config, run.ranks)
    config = replace(config, labels=list(data.labels.names))
    run.find_resume(config, data)
    objective = build_objective(
        data.labels,
        class_weights=config.class_weights,
        positive_weights=config.positive_weights,
        label_smoothing=config.label_smoothing,
        label_counts=data.label_counts,
    )
    task = TextClassification(
        config.text_column, data.labels, objective, tokenizer, config.max_length, tuple(config.extra_metrics)
    )
    task.check_metrics(config.best_metric)

    trainable = load_trainable(
        AutoModelForSequenceClassification,
        model_name,
        tokenizer,
        config,
        task_type="SEQ_CLS",
        precision=run.precision,
        device=run.device,
        **model_config(data.labels),
    )
    work = work_of(trainable.model, config, data.labels, objective, run.precision)
    with Training(run, config, data, task, trainable, tokenizer, work, workload) as training:
        accelerator, model, cutter, guard = run.accelerator, training.model, training.cutter, training.guard
        optimizer, scheduler = training.optimizer, training.scheduler
        for window in training.windows:  # the examples of one optimizer step
            for micro_batch in window.micro_batches(cutter):
                with accumulate(accelerator, model, micro_batch):
                    inputs, labels = micro_batch.batch
                    loss = objective(model(**inputs).logits, labels)  # summed, in float32
                    window.record(loss)
                    accelerator.backward(loss * micro_batch.scale)
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            learning_rate = scheduler.get_last_lr()[0]
            if guard.refuses(window, grad_norm):  # the loss or the gradient is not finite
                discard_gradients(model, window)
                if guard.gave_up:
                    break
            else:
                optimizer.step()
                if not accelerator.optimizer_step_was_skipped:  # as fp16's scaler does on overflow
                    scheduler.step()
            optimizer.zero_grad()
            training.step_done(window, grad_norm, learning_rate)
        return training.finish()


def workload(config: ClinicalClassificationConfig, precision: str = "no") -> "Workload":
    """What `train` computes, from the model's config alone: no weights, no data. For `hf-accum plan`."""
    from transformers import AutoModelForSequenceClassification

    from hf_accum.models.trainable import without_weights
    from hf_accum.tasks.labels import LabelColumn
    from hf_accum.tasks.text_classification.task import build_objective, model_config
    from recipes.embedded.models import minilm

    names = () if config.problem == "regression" else tuple(config.labels) or ("no", "yes")
    labels = LabelColumn("label", config.problem, names, config.label_separator)
    objective = build_objective(labels, label_smoothing=config.label_smoothing)
    model = without_weights(
        AutoModelForSequenceClassification,
        config.model or minilm(),
        config,
        task_type="SEQ_CLS",
        **model_config(labels),
    )
    return work_of(model, config, labels, objective, precision)


def work_of(
    model: "nn.Module",
    config: ClinicalClassificationConfig,
    labels: "LabelColumn",
    objective: "Objective",
    precision: str,
) -> "Workload":
    """What is computed with a model, on examples that are made up."""
    from hf_accum.models.optimizer import build_optimizer
    from hf_accum.tasks.text_classification.task import classification_workload

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
    from hf_accum.distributed.collectives import on_all_ranks
    from hf_accum.tasks.text_classification.data import open_labelled_texts
    from recipes.embedded.synopses import clinical_synopses

    dataset, group_column, label_column = config.dataset, config.group_column, config.label_column
    if dataset is None:
        dataset = on_all_ranks(ranks, clinical_synopses)[ranks.index]
        group_column = group_column or "disease"
        multi = config.problem == "multi_label_classification"
        label_column = label_column or ("modes" if multi else "inheritance")
    return open_labelled_texts(
        dataset,
        ranks,
        config,
        text_column=config.text_column,
        label_column=label_column or "label",
        group_column=group_column or config.text_column,
        problem=config.problem,
        label_names=tuple(config.labels),
        label_separator=config.label_separator,
        needs_counts=config.class_weights in ("balanced", "sqrt_balanced"),
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = parse(ClinicalClassificationConfig, __doc__ or "", arguments)
    run(lambda: train(config), config)


if __name__ == "__main__":
    main()
