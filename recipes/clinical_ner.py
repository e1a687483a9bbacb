"""Fine-tune a clinical-text encoder to find entities: drugs, diseases, findings, ... in the words of a text.

By default MiniLM with LoRA learns eight types of entities from sentences of biomedical papers (NERO). One's own model
and data go by flags: texts with entities by characters, CoNLL files, BRAT folders, or lists of words and tags.

    accelerate launch -m recipes.clinical_ner --model emilyalsentzer/Bio_ClinicalBERT \
        --dataset notes.jsonl --text_column text --entities_column entities --group_column patient
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hf_accum import recipe  # its parts are imported when they are used: help and a wrong flag need no torch
from hf_accum.config.long_texts import default_overlap
from hf_accum.config.validation import require, require_not_empty
from recipes.embedded.models import minilm
from recipes.embedded.nero import biomedical_entities


@dataclass(frozen=True, kw_only=True)
class ClinicalNerConfig(recipe.RecipeConfig):
    """Where the entities stand, and how long texts are cut."""

    words_column: str = "tokens"
    """Column with the words of a text, a list (or a text with spaces between)."""
    tags_column: str = "tags"
    """Column with the tag of each word, likewise: O, B-TYPE, I-TYPE (IOB1, IOBES, BILOU too), or their numbers."""
    text_column: str = "text"
    """Column with the text, where there are no words and tags."""
    entities_column: str | None = None
    """Column with the entities of the text: start, end (the character behind it), label; default: the first
    that there is of entities, spans, label, labels and annotations."""
    types: list[str] | str = field(default_factory=list)
    """Types of entities (a list, or with commas between); default: those in the data, sorted."""
    labels: list[str] | str = field(default_factory=list)
    """What tags that are numbers mean, from 0 on: O,B-drug,I-drug; default: as the column is typed, or as in the run
    that this one starts from."""
    nested: Literal["longest", "each_label"] = "longest"
    """Of entities that overlap the longest is kept, or those of different types are (a layer of tags for each)."""
    overlap: int | None = None
    """Tokens that the parts of a text share which is longer than max_length: a word counts once, in the part where it
    has more context. null: a quarter of max_length, at most 64."""
    max_length: int = 256
    """Tokens in one forward; longer texts are cut into parts."""
    learning_rate: float | None = 1e-3
    """The highest learning rate of the schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.split_names("types", "labels")
        require_not_empty(self, "words_column", "tags_column", "text_column", rule="not empty")
        require_not_empty(self, "entities_column")
        require(len(set(self.types)) == len(self.types), "types", self.types, "all different")
        if self.overlap is None:
            object.__setattr__(self, "overlap", default_overlap(self.max_length))
        require(
            0 <= self.tokens_shared < self.max_length, "overlap", self.overlap, "at least 0, and below `max_length`"
        )

    @property
    def tokens_shared(self) -> int:
        """The overlap: a number by now."""
        return self.overlap or 0


def train(config: ClinicalNerConfig):
    """Train; returns the figures of the held-out part: precision, recall and F1 of whole entities."""
    from hf_accum import accumulate
    from hf_accum.models.loading import labels_in_order_of_head
    from hf_accum.tasks.token_classification.tags import labels_of

    run = recipe.StartedRun(config, workload)  # what is wrong with the folder, the launch or the model is said here
    tokenizer = recipe.load_tokenizer(config.model or minilm(), config.trust, of_words=True)
    # Read once, before any weight: its types, its size, its bad rows.
    data = open_data(config, run.ranks, tokenizer, run.earlier_values("types"), run.earlier_values("labels"))
    config = replace(config, types=list(data.types), labels=list(data.names))
    labels = labels_of(config.types, in_layers=config.nested == "each_label")
    labels = labels_in_order_of_head(config.model or minilm(), labels, config.trust)
    task, spec = task_of(config, labels, tokenizer), spec_of(config, labels)
    task.check_metrics(config.best_metric)
    with recipe.Training(run=run, config=config, data=data, task=task, spec=spec, processor=tokenizer) as training:
        accelerator, model, capacity = training.accelerator, training.model, training.capacity
        optimizer, scheduler, nonfinite = training.optimizer, training.scheduler, training.nonfinite
        for window in training.windows:  # the texts of one optimizer step
            for micro_batch in window.micro_batches(capacity):
                with accumulate(accelerator, model, micro_batch):
                    loss = task.summed_loss(model, micro_batch.batch)  # summed over the words that count, in float32
                    accelerator.backward(micro_batch.scaled(loss))
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            if nonfinite.accepts(window, grad_norm):
                optimizer.step()
                scheduler.step()
            optimizer.zero_grad()
            training.step_done(window, grad_norm)
        return training.finish()


def task_of(config: ClinicalNerConfig, labels: tuple[str, ...], tokenizer: Any):
    """A text in parts, and the loss of the tag of each word. Without a tokenizer: for a plan."""
    from hf_accum.accumulation.losses import CrossEntropy
    from hf_accum.tasks.token_classification.task import EntityTagging

    types = tuple(config.types) if config.nested == "each_label" else ()
    return EntityTagging(labels, CrossEntropy(), tokenizer, config.max_length, types, config.tokens_shared)


def spec_of(config: ClinicalNerConfig, labels: tuple[str, ...]) -> "recipe.ModelSpec":
    """An encoder, with a head for the tag of each token."""
    from transformers import AutoModelForTokenClassification

    from hf_accum.tasks.labels import named_labels

    return recipe.ModelSpec(
        AutoModelForTokenClassification, config.model or minilm(), "TOKEN_CLS", named_labels(labels)
    )


def workload(config: ClinicalNerConfig, precision: str = "no") -> "recipe.Workload":
    """The same by the flags alone, for `hf-accum plan`: one type of entity, where they name none."""
    from hf_accum.tasks.token_classification.tags import labels_of

    config = replace(config, types=config.types or ["entity"])
    labels = labels_of(config.types, in_layers=config.nested == "each_label")
    return recipe.planned(spec_of(config, labels), task_of(config, labels, None), config, precision)


def predictor(config: ClinicalNerConfig, task: Any):
    """What `hf-accum predict` tells of a text, or of words."""
    from hf_accum.tasks.token_classification.prediction import EntityPredictor

    return EntityPredictor(task, config.words_column, config.text_column, tuple(config.types))


def open_data(
    config: ClinicalNerConfig,
    ranks: "recipe.Ranks",
    tokenizer: Any,
    earlier_types: tuple[str, ...] = (),
    earlier_names: tuple[str, ...] = (),
):
    """The texts of the flags, or the embedded sentences; read for their types and their lengths."""
    from hf_accum.tasks.token_classification.data import open_tagged_texts
    from hf_accum.tasks.token_classification.files import Columns

    embedded = {"entities": recipe.Embedded(biomedical_entities, {"group_column": "sentence"})}
    config, dataset = recipe.with_dataset(config, ranks, embedded)
    return open_tagged_texts(
        dataset,
        ranks,
        config,
        tokenizer,
        columns=Columns(config.words_column, config.tags_column, config.text_column, config.entities_column),
        group_column=config.group_column,
        types=tuple(config.types),
        earlier_types=earlier_types,
        overlap=config.tokens_shared,
        names=tuple(config.labels),
        earlier_names=earlier_names,
        nested=config.nested,
    )


main = recipe.command(ClinicalNerConfig, train, __doc__)

if __name__ == "__main__":
    main()
