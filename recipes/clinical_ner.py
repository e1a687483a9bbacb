"""Fine-tune a clinical-text encoder to find entities: drugs, diseases, findings, ... in the words of a text.

By default MiniLM with LoRA learns eight types of entities from sentences of biomedical papers (NERO). One's own model
and data, two lists of words and of their tags (O, B-TYPE, I-TYPE) for each text, go by flags:

    accelerate launch -m recipes.clinical_ner --model emilyalsentzer/Bio_ClinicalBERT \
        --dataset notes.jsonl --words_column tokens --tags_column ner_tags --group_column patient
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import run
from hf_accum.cli.parser import parse
from hf_accum.config.recipe import RecipeConfig, require

# Everything heavy is imported by `train`: help and a wrong flag need no torch.
if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from hf_accum.distributed.ranks import Ranks
    from hf_accum.tasks.token_classification.data import TaggedTexts
    from hf_accum.tuner.workload import Workload


@dataclass(frozen=True, kw_only=True)
class ClinicalNerConfig(RecipeConfig):
    """The flags of this recipe, and those that every recipe shares."""

    words_column: str = "tokens"
    """Column with the words of a text, a list."""
    tags_column: str = "tags"
    """Column with the tag of each word, a list: O, B-TYPE or I-TYPE (or numbers, in a column typed as classes)."""
    types: list[str] | str = field(default_factory=list)
    """Types of entities (a list, or with commas between); default: those in the data, sorted."""
    overlap: int = 64
    """Tokens that the parts of a text share which is longer than max_length: a word counts once, in the part where it
    has more context."""
    max_length: int = 256
    """Tokens in one forward; longer texts are cut into parts."""
    learning_rate: float = 1e-3
    """The highest learning rate of the schedule."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self.split_names("types")
        for name in ("words_column", "tags_column"):
            require(getattr(self, name) != "", name, "''", "not empty")
        require(len(set(self.types)) == len(self.types), "types", self.types, "all different")
        require(0 <= self.overlap < self.max_length, "overlap", self.overlap, "at least 0, and below `max_length`")


def train(config: ClinicalNerConfig) -> Mapping[str, Any]:
    """Run the recipe; returns the final evaluation."""
    from transformers import AutoModelForTokenClassification

    from hf_accum.accumulation.accumulate import accumulate, discard_gradients
    from hf_accum.accumulation.losses import CrossEntropy
    from hf_accum.models.loading import labels_in_order_of_head
    from hf_accum.models.tokenizers import load_tokenizer
    from hf_accum.models.trainable import load_trainable
    from hf_accum.run.training import StartedRun, Training
    from hf_accum.tasks.labels import named_labels
    from hf_accum.tasks.token_classification.data import labels_of
    from hf_accum.tasks.token_classification.task import EntityTagging
    from recipes.embedded.models import minilm

    # What is wrong with the launch, the folder or the model is said before the data is read.
    run = StartedRun(config)
    workload(config)
    model_name = config.model or minilm()
    tokenizer = load_tokenizer(model_name, config.doors, of_words=True)

    # The data is read once before any weight is loaded: its types of entities, its size, its bad rows.
    data = open_data(config, run.ranks, tokenizer)
    config = replace(config, types=list(data.types))
    run.find_resume(config, data)
    labels = labels_in_order_of_head(model_name, labels_of(data.types), config.doors)
    objective = CrossEntropy()
    task = EntityTagging(data.columns, labels, objective, tokenizer, config.max_length)
    task.check_metrics(config.best_metric)

    trainable = load_trainable(
        AutoModelForTokenClassification,
        model_name,
        tokenizer,
        config,
        task_type="TOKEN_CLS",
        precision=run.precision,
        device=run.device,
        **named_labels(labels),
    )
    work = work_of(trainable.model, config, run.precision)
    with Training(run, config, data, task, trainable, tokenizer, work, workload) as training:
        accelerator, model, cutter, guard = run.accelerator, training.model, training.cutter, training.guard
        optimizer, scheduler = training.optimizer, training.scheduler
        for window in training.windows:  # the texts of one optimizer step
            for micro_batch in window.micro_batches(cutter):
                with accumulate(accelerator, model, micro_batch):
                    inputs, tags = micro_batch.batch
                    loss = objective(model(**inputs).logits, tags)  # summed over the words, in float32
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


def workload(config: ClinicalNerConfig, precision: str = "no") -> "Workload":
    """What `train` computes, from the model's config alone: no weights, no data. For `hf-accum plan`."""
    from transformers import AutoModelForTokenClassification

    from hf_accum.models.trainable import without_weights
    from hf_accum.tasks.labels import named_labels
    from hf_accum.tasks.token_classification.data import labels_of
    from recipes.embedded.models import minilm

    model = without_weights(
        AutoModelForTokenClassification,
        config.model or minilm(),
        config,
        task_type="TOKEN_CLS",
        **named_labels(labels_of(tuple(config.types) or ("entity",))),
    )
    return work_of(model, config, precision)


def work_of(model: "nn.Module", config: ClinicalNerConfig, precision: str) -> "Workload":
    """What is computed with a model, on examples that are made up."""
    from hf_accum.accumulation.losses import CrossEntropy
    from hf_accum.models.optimizer import build_optimizer
    from hf_accum.tasks.token_classification.task import tagging_workload

    return tagging_workload(
        model,
        lambda model: build_optimizer(model, config.learning_rate, config.weight_decay),
        objective=CrossEntropy(),
        max_length=config.max_length,
        precision=precision,
    )


def open_data(config: ClinicalNerConfig, ranks: "Ranks", tokenizer: "PreTrainedTokenizerBase") -> "TaggedTexts":
    """The dataset of the flags, or the embedded one with the columns that it has."""
    from hf_accum.distributed.collectives import on_all_ranks
    from hf_accum.tasks.token_classification.data import open_tagged_texts
    from recipes.embedded.nero import biomedical_entities

    dataset, group_column = config.dataset, config.group_column
    if dataset is None:
        dataset = on_all_ranks(ranks, biomedical_entities)[ranks.index]
        group_column = group_column or "sentence"
    return open_tagged_texts(
        dataset,
        ranks,
        config,
        tokenizer,
        words_column=config.words_column,
        tags_column=config.tags_column,
        group_column=group_column,
        types=tuple(config.types),
        overlap=config.overlap,
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = parse(ClinicalNerConfig, __doc__ or "", arguments)
    run(lambda: train(config), config)


if __name__ == "__main__":
    main()
