"""Fine-tune a clinical-text encoder to classify texts: one label each, several, or a number.

By default MiniLM with LoRA learns to tell the mode of inheritance of rare diseases from their clinical synopses.
One's own model and data go by flags:

    accelerate launch -m recipes.clinical_classification --model emilyalsentzer/Bio_ClinicalBERT \
        --dataset notes.jsonl --text_column note --label_column diagnosis --group_column patient
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hf_accum.cli.command import command
from hf_accum.config.recipe import RecipeConfig
from hf_accum.tasks.flags import ClassWeights, Problem, check_classification

if TYPE_CHECKING:  # everything heavy is imported in functions: help and a wrong flag need no torch
    from hf_accum.distributed.ranks import Ranks
    from hf_accum.models.spec import ModelSpec
    from hf_accum.tasks.labels import LabelColumn
    from hf_accum.tasks.text_classification.data import LabelledTexts
    from hf_accum.tasks.text_classification.task import TextClassification
    from hf_accum.tuner.workload import Workload


@dataclass(frozen=True, kw_only=True)
class ClinicalClassificationConfig(RecipeConfig):
    """The flags of this recipe, and those that every recipe shares."""

    text_column: str = "text"
    """Column with the text."""
    label_column: str | None = None
    """Column with the label; default: label, or that of the embedded dataset."""
    problem: Problem = "single_label_classification"
    """One class for each text, any number of labels, or a number."""
    labels: list[str] | str = field(default_factory=list)
    """Names of the labels, in order (a list, or with commas between); default: those in the data, sorted."""
    label_separator: str = "|"
    """Between the labels of one text, where they are one string (multi_label_classification)."""
    class_weights: ClassWeights = "none"
    """Weight of each class in the loss: balanced is n / (classes * n of the class), sqrt_balanced its square
    root, or a number for each label in order (single_label_classification)."""
    positive_weights: list[float] = field(default_factory=list)
    """What the loss of a present label is multiplied by, for each label (multi_label_classification)."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes (single_label_classification)."""
    extra_metrics: list[str] | str = field(default_factory=list)
    """Metrics of the hub beside the shipped ones, by name. They are code, and need trust_remote_code."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self.split_names("labels", "extra_metrics")
        check_classification(self)


def train(config: ClinicalClassificationConfig) -> Mapping[str, Any]:
    """Run the recipe; returns the final evaluation."""
    from hf_accum import StartedRun, Training, accumulate, load_tokenizer

    run = StartedRun(config, workload)  # what is wrong with the folder, the launch or the model is said here
    data = open_data(config, run.ranks)  # read once, before any weight: its labels, its size, its bad rows
    tokenizer = load_tokenizer(model_name(config), config.trust)
    task = task_of(config, data.labels, tokenizer, data.label_counts)
    task.check_metrics(config.best_metric)
    spec, config = spec_of(config, data.labels), replace(config, labels=list(data.labels.names))
    with Training(run=run, config=config, data=data, task=task, spec=spec, processor=tokenizer) as training:
        accelerator, model, capacity = training.accelerator, training.model, training.capacity
        optimizer, scheduler, nonfinite = training.optimizer, training.scheduler, training.nonfinite
        summed_loss = task.summed_loss
        for window in training.windows:  # the texts of one optimizer step
            for micro_batch in window.micro_batches(capacity):  # cut; again, smaller, if memory ran out
                with accumulate(accelerator, model, micro_batch):
                    loss = summed_loss(model, micro_batch.batch)  # over the micro-batch, in float32
                    accelerator.backward(micro_batch.scaled(loss))  # noted, and divided once
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            if nonfinite.accepts(window, grad_norm):
                optimizer.step()
                scheduler.step()
            optimizer.zero_grad()
            training.step_done(window, grad_norm)
        return training.finish()


def task_of(
    config: ClinicalClassificationConfig, labels: "LabelColumn", tokenizer: Any, counts: Mapping[str, int]
) -> "TextClassification":
    """What an example is, and its loss. Without a tokenizer: for a plan."""
    from hf_accum.tasks.text_classification.task import TextClassification, build_objective

    objective = build_objective(
        labels,
        class_weights=config.class_weights,
        positive_weights=config.positive_weights,
        label_smoothing=config.label_smoothing,
        label_counts=counts,
    )
    metrics = tuple(config.extra_metrics)
    return TextClassification(config.text_column, labels, objective, tokenizer, config.max_length, metrics)


def spec_of(config: ClinicalClassificationConfig, labels: "LabelColumn") -> "ModelSpec":
    """Which model is trained."""
    from transformers import AutoModelForSequenceClassification

    from hf_accum.models.spec import ModelSpec
    from hf_accum.tasks.text_classification.task import model_config

    return ModelSpec(AutoModelForSequenceClassification, model_name(config), "SEQ_CLS", model_config(labels))


def model_name(config: ClinicalClassificationConfig) -> str:
    """That of the flags, or the embedded one."""
    from recipes.embedded.models import minilm

    return config.model or minilm()


def workload(config: ClinicalClassificationConfig, precision: str = "no") -> "Workload":
    """What `train` computes, from the model's config alone: no weights, no data. For `hf-accum plan`."""
    from hf_accum.tasks.labels import LabelColumn
    from hf_accum.tuner.workload import planned

    names = () if config.problem == "regression" else tuple(config.labels) or ("no", "yes")
    labels = LabelColumn("label", config.problem, names, config.label_separator)
    task = task_of(config, labels, None, dict.fromkeys(names, 1))
    return planned(spec_of(config, labels), task, config, precision)


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


main = command(ClinicalClassificationConfig, train, __doc__)

if __name__ == "__main__":
    main()
