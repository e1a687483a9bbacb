"""Fine-tune a clinical-text encoder to classify texts: one label each, several, or a number.

By default MiniLM with LoRA learns to tell the chapter of ICD-10-CM that a diagnosis belongs to from its description;
with `--dataset embedded:synopses` the mode of inheritance of rare diseases from their clinical synopses.
One's own model and data go by flags:

    accelerate launch -m recipes.clinical_classification --model emilyalsentzer/Bio_ClinicalBERT \
        --dataset notes.jsonl --text_column note --label_column diagnosis --group_column patient
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hf_accum import recipe  # its parts are imported when they are used: help and a wrong flag need no torch
from hf_accum.config.long_texts import LongTextFlags, check_long_texts, windows_of
from hf_accum.config.validation import COUNT_OR_NULL
from hf_accum.tasks.classification_flags import LabelFlags, TextFlags
from hf_accum.tasks.flags import Pooling, check_classification, check_text_columns
from recipes.embedded.icd import icd_chapters
from recipes.embedded.models import minilm
from recipes.embedded.synopses import clinical_synopses

if TYPE_CHECKING:
    from hf_accum.tasks.labels import LabelColumn


@dataclass(frozen=True, kw_only=True)
class ClinicalClassificationConfig(LabelFlags, LongTextFlags, TextFlags, recipe.RecipeConfig):
    """What a text is, and what the classifier sees of it."""

    label_column: str | list[str] | None = None
    """Column with the label; default: label, or that of the embedded dataset. Several, with commas between: one with
    0 or 1 for each label (multi_label_classification)."""
    pooling: Pooling | None = None
    """What of the last states the classifier sees: their mean, their largest values (max), or what the model's own
    head takes, as the first token's (cls); default: mean if the model was made so (for sentences), else cls."""
    baselines: bool = False
    """Tell in the end what simple methods reach on the same split: a bag of words, and the untrained encoder."""
    num_epochs: int | None = field(default=3, metadata=COUNT_OR_NULL)
    """Passes over the data; null: as many as max_steps takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.split_names("labels", "extra_metrics", *(["label_column"] if "," in (self.label_column or "") else []))
        check_classification(self)
        check_text_columns(self)
        check_long_texts(self)


def train(config: ClinicalClassificationConfig):
    """Train; returns the figures of the held-out part: loss, accuracy and F1, or those of the problem."""
    from hf_accum import accumulate
    from hf_accum.tasks.text_classification.baselines import compare_with_baselines
    from hf_accum.tasks.text_classification.pairs import read_pairs
    from hf_accum.tasks.text_classification.positive_weights import notes_of_weights

    run = recipe.StartedRun(config, workload)  # what is wrong with the folder, the launch or the model is said here
    config, _ = recipe.with_dataset(config, run.ranks, embedded(config))  # and what belongs to it
    # Read once, before any weight: its labels, its size, its bad rows.
    data = open_data(config, run.ranks, run.earlier_values("labels"))
    tokenizer = recipe.load_tokenizer(config.model or minilm(), config.trust)
    if config.text_pair_column is not None:
        read_pairs(tokenizer, run.planned.model, config.max_length)
    task = task_of(config, data.labels, tokenizer, data.label_counts, data.num_train)
    run.notes += notes_of_weights(data.labels.names, config.positive_weights, data.label_counts, data.num_train or 0)
    task.check_metrics(config.best_metric)
    config = replace(config, labels=data.labels.as_flag, pooling=pooling_of(config))
    spec = spec_of(config, data.labels)
    with recipe.Training(run=run, config=config, data=data, task=task, spec=spec, processor=tokenizer) as training:
        accelerator, model, capacity = training.accelerator, training.model, training.capacity
        optimizer, scheduler, nonfinite = training.optimizer, training.scheduler, training.nonfinite
        for window in training.windows:  # the texts of one optimizer step
            for micro_batch in window.micro_batches(capacity):  # cut; again, smaller, if memory ran out
                with accumulate(accelerator, model, micro_batch):
                    loss = task.summed_loss(model, micro_batch.batch)  # over the micro-batch, in float32
                    accelerator.backward(micro_batch.scaled(loss))  # noted, and divided once
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            if nonfinite.accepts(window, grad_norm):
                optimizer.step()
                scheduler.step()
            optimizer.zero_grad()
            training.step_done(window, grad_norm)
        figures = training.finish()
        if config.baselines and run.ranks.index == 0:
            compare_with_baselines(config, data, task, config.model or minilm(), figures)
        return figures


def task_of(
    config: ClinicalClassificationConfig,
    labels: "LabelColumn",
    tokenizer: Any,
    counts: Mapping[str, int],
    num_examples: int | None,
):
    """A text and its label, and the loss of the problem. Without a tokenizer: for a plan."""
    from hf_accum.tasks.text_classification.task import TextClassification, build_objective
    from hf_accum.tasks.text_classification.windows import LongTextClassification

    objective = build_objective(
        labels,
        class_weights=config.class_weights,
        positive_weights=config.positive_weights,
        label_smoothing=config.label_smoothing or 0.0,
        label_counts=counts,
        num_examples=num_examples,
    )
    metrics, windows = tuple(config.extra_metrics), windows_of(config)
    how: dict[str, Any] = {
        "tune_thresholds": config.tune_thresholds,
        "temperature_scaling": config.temperature_scaling,
        "pair_column": config.text_pair_column,
    }
    kind = TextClassification
    if windows is not None:  # of long texts, which `training` runs ahead of the loop, without a graph
        kind, how["windows"] = LongTextClassification, windows
    return kind(config.read_column, labels, objective, tokenizer, config.max_length, metrics, **how)


def spec_of(config: ClinicalClassificationConfig, labels: "LabelColumn") -> "recipe.ModelSpec":
    """An encoder, with a head that has the labels' names."""
    from hf_accum.models.pooled_classifier import classifier_of
    from hf_accum.tasks.text_classification.task import model_config

    kind = classifier_of(pooling_of(config), windows_of(config))
    return recipe.ModelSpec(kind, config.model or minilm(), "SEQ_CLS", model_config(labels))


def pooling_of(config: ClinicalClassificationConfig) -> Pooling:
    """What the classifier sees of the states, by the flag or by how the model was made."""
    from hf_accum.models.pooling import classifier_pooling

    return config.pooling or classifier_pooling(config.model or minilm(), config.trust)


def workload(config: ClinicalClassificationConfig, precision: str = "no") -> "recipe.Workload":
    """The same by the flags alone, for `hf-accum plan`: two labels, where they name none."""
    from hf_accum.tasks.label_codes import names_of
    from hf_accum.tasks.labels import LabelColumn

    names = () if config.problem == "regression" else names_of(config.labels, config.label_column) or ("no", "yes")
    labels = LabelColumn("label", config.problem, names, config.label_separator)
    task = task_of(config, labels, None, dict.fromkeys(names, 1), 2)
    return recipe.planned(spec_of(config, labels), task, config, precision)


def predictor(config: ClinicalClassificationConfig, task: Any):
    """What `hf-accum predict` tells of a text."""
    from hf_accum.tasks.text_classification.prediction import TextPredictor

    return TextPredictor(task, config.template)


def open_data(config: ClinicalClassificationConfig, ranks: "recipe.Ranks", earlier_labels: tuple[str, ...] = ()):
    """The texts of the flags, or embedded ones: diagnoses and their chapters, or synopses and their inheritance."""
    from hf_accum.tasks.text_classification.data import open_labelled_texts

    config, dataset = recipe.with_dataset(config, ranks, embedded(config))
    return open_labelled_texts(
        dataset,
        ranks,
        config,
        text_column=config.read_column,
        label_column=config.label_column or "label",
        group_column=config.group_column or config.read_column,
        pair_column=config.text_pair_column,
        template=config.template,
        problem=config.problem,
        label_names=tuple(config.labels),
        earlier_labels=earlier_labels,
        label_separator=config.label_separator,
        label_format=config.label_format,
        needs_counts="balanced" in (config.class_weights, config.positive_weights)
        or config.class_weights == "sqrt_balanced",
        calibration_fraction=config.calibration_fraction if config.calibrates else 0.0,
    )


def embedded(config: ClinicalClassificationConfig) -> "dict[str, recipe.Embedded]":
    """The datasets by name: diagnoses in two splits, each with what it is learned well by, and synopses."""
    columns = {"label_column": "chapter", "group_column": "category", "eval_split": "test"}
    diagnoses = columns | {"learning_rate": 2e-3, "label_smoothing": 0.1, "dropout": 0.0}
    modes = "modes" if config.problem == "multi_label_classification" else "inheritance"
    return {
        "icd": recipe.Embedded(icd_chapters, diagnoses),
        "icd-d": recipe.Embedded(lambda: icd_chapters("d"), diagnoses),
        "synopses": recipe.Embedded(clinical_synopses, {"label_column": modes, "group_column": "disease"}),
    }


main = recipe.command(ClinicalClassificationConfig, train, __doc__)

if __name__ == "__main__":
    main()
