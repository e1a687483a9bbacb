"""Go on with the pre-training of a medical encoder on one's own notes (masked language modelling), before a task.

By default MiniLM learns the language of the clinical synopses, all of its weights. One's own model and notes go by
flags, and the result goes into the other recipes:

    accelerate launch -m recipes.medical_mlm --model emilyalsentzer/Bio_ClinicalBERT --dataset notes.jsonl
    accelerate launch -m recipes.clinical_classification --model runs/latest/model ...
"""

from dataclasses import dataclass, field
from typing import Any

from hf_accum import recipe  # its parts are imported when they are used: help and a wrong flag need no torch
from hf_accum.config.lora import LoraConfig
from hf_accum.config.validation import COUNT_OR_NULL, require, require_not_empty
from recipes.embedded.models import minilm
from recipes.embedded.synopses import clinical_synopses


@dataclass(frozen=True, kw_only=True)
class MedicalMlmConfig(recipe.RecipeConfig):
    """What a text is, and how much of it is hidden."""

    text_column: str = "text"
    """Column with the text."""
    mlm_probability: float = 0.15
    """The share of tokens that are hidden and have to be guessed."""
    loss_chunk_size: int | None = field(default=None, metadata=COUNT_OR_NULL)
    """Tokens whose logits stand in memory at once; null: as many as have 64 MiB of logits in float32."""
    max_length: int = 512
    """Tokens in one forward; longer texts are cut into consecutive parts."""
    learning_rate: float | None = 1e-4
    """The highest learning rate of the schedule."""
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_empty(self, "text_column", rule="not empty")
        require(0 < self.mlm_probability < 1, "mlm_probability", self.mlm_probability, "between 0 and 1")


def train(config: MedicalMlmConfig):
    """Train; returns the figures of the held-out part: loss of a hidden token, perplexity, accuracy."""
    from hf_accum import accumulate
    from hf_accum.tasks.masked_lm.task import load_masking_tokenizer

    run = recipe.StartedRun(config, workload)  # what is wrong with the folder, the launch or the model is said here
    tokenizer = load_masking_tokenizer(config.model or minilm(), config.trust)
    task, spec = task_of(config, tokenizer, run.precision), spec_of(config)
    task.check_metrics(config.best_metric)
    data = open_data(config, run.ranks, tokenizer)  # read once, before any weight: its size, its bad rows
    how = {"processor": tokenizer, "draw": task.draw}  # which tokens are hidden is drawn in each pass
    with recipe.Training(run=run, config=config, data=data, task=task, spec=spec, **how) as training:
        accelerator, model, capacity = training.accelerator, training.model, training.capacity
        optimizer, scheduler, nonfinite = training.optimizer, training.scheduler, training.nonfinite
        for window in training.windows:  # the texts of one optimizer step
            for micro_batch in window.micro_batches(capacity):
                with accumulate(accelerator, model, micro_batch):
                    loss = task.summed_loss(model, micro_batch.batch)  # summed over the hidden tokens, in chunks
                    accelerator.backward(micro_batch.scaled(loss))
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            if nonfinite.accepts(window, grad_norm):
                optimizer.step()
                scheduler.step()
            optimizer.zero_grad()
            training.step_done(window, grad_norm)
        return training.finish()


def task_of(config: MedicalMlmConfig, tokenizer: Any, precision: str):
    """A text with hidden tokens, and their loss in chunks. Without a tokenizer: for a plan."""
    from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy
    from hf_accum.tasks.masked_lm.task import MaskedTexts

    objective = ChunkedCrossEntropy(config.loss_chunk_size, precision)
    return MaskedTexts(tokenizer, objective, config.max_length, config.seed, config.mlm_probability)


def spec_of(config: MedicalMlmConfig) -> "recipe.ModelSpec":
    """A masked model that gives the inputs of its output layer, by which the loss multiplies in chunks."""
    from transformers import AutoModelForMaskedLM

    from hf_accum.tasks.language_modeling.chunked_loss import stop_before_output_layer

    name = config.model or minilm()
    return recipe.ModelSpec(AutoModelForMaskedLM, name, "MASKED_LM", prepare=stop_before_output_layer)


def workload(config: MedicalMlmConfig, precision: str = "no") -> "recipe.Workload":
    """The same by the flags alone, for `hf-accum plan`."""
    return recipe.planned(spec_of(config), task_of(config, None, precision), config, precision)


def open_data(config: MedicalMlmConfig, ranks: "recipe.Ranks", tokenizer: Any):
    """The notes of the flags, or the embedded synopses, cut into parts of `max_length`."""
    from hf_accum.tasks.masked_lm.data import open_plain_texts

    synopses = recipe.Embedded(clinical_synopses, {"group_column": "disease"})
    config, dataset = recipe.with_dataset(config, ranks, {"synopses": synopses})
    return open_plain_texts(
        dataset, ranks, config, tokenizer, text_column=config.text_column, group_column=config.group_column
    )


main = recipe.command(MedicalMlmConfig, train, __doc__)

if __name__ == "__main__":
    main()
