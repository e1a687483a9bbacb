"""Go on with the pre-training of a medical encoder on one's own notes (masked language modelling), before a task.

By default MiniLM learns the language of the clinical synopses, all of its weights. One's own model and notes go by
flags, and the result goes into the other recipes:

    accelerate launch -m recipes.medical_mlm --model emilyalsentzer/Bio_ClinicalBERT --dataset notes.jsonl
    accelerate launch -m recipes.clinical_classification --model runs/latest/model ...
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import run
from hf_accum.cli.parser import parse
from hf_accum.config.recipe import LoraConfig, RecipeConfig, require, require_count
from hf_accum.errors import UserError

# Everything heavy is imported by `train`: help and a wrong flag need no torch.
if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from hf_accum.data.split import SplitData
    from hf_accum.distributed.ranks import Ranks
    from hf_accum.tuner.workload import Workload


@dataclass(frozen=True, kw_only=True)
class MedicalMlmConfig(RecipeConfig):
    """The flags of this recipe, and those that every recipe shares."""

    text_column: str = "text"
    """Column with the text."""
    mlm_probability: float = 0.15
    """The share of tokens that are hidden and have to be guessed."""
    loss_chunk_size: int = 512
    """Tokens whose logits stand in memory at once."""
    max_length: int = 512
    """Tokens in one forward; longer texts are cut into consecutive parts."""
    learning_rate: float = 1e-4
    """The highest learning rate of the schedule."""
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=0))

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        require(self.text_column != "", "text_column", "''", "not empty")
        require(0 < self.mlm_probability < 1, "mlm_probability", self.mlm_probability, "between 0 and 1")
        require_count("loss_chunk_size", self.loss_chunk_size)


def train(config: MedicalMlmConfig) -> Mapping[str, Any]:
    """Run the recipe; returns the final evaluation."""
    from transformers import AutoModelForMaskedLM

    from hf_accum.accumulation.accumulate import accumulate, discard_gradients
    from hf_accum.models.tokenizers import load_tokenizer
    from hf_accum.models.trainable import load_trainable
    from hf_accum.run.training import StartedRun, Training
    from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy, stop_before_output_layer
    from hf_accum.tasks.language_modeling.perplexity import check_token_metric
    from hf_accum.tasks.masked_lm.task import ACCURACY, MaskedTexts
    from recipes.embedded.models import minilm

    # What is wrong with the launch, the folder or the model is said before the data is read.
    run = StartedRun(config)
    workload(config)
    model_name = config.model or minilm()
    tokenizer = load_tokenizer(model_name, config.trust)
    if tokenizer.mask_token_id is None:
        raise UserError(f"--model {model_name}: has to have a token for what is hidden; its tokenizer has none")
    check_token_metric(config.best_metric, ACCURACY)

    # The data is read once before any weight is loaded: its size, its bad rows.
    data = open_data(config, run.ranks, tokenizer)
    run.find_resume(config, data)
    trainable = load_trainable(
        AutoModelForMaskedLM,
        model_name,
        tokenizer,
        config,
        task_type="MASKED_LM",
        precision=run.precision,
        device=run.device,
    )
    layer = stop_before_output_layer(trainable.base)
    objective = ChunkedCrossEntropy(layer, config.loss_chunk_size, run.precision)
    task = MaskedTexts(tokenizer, objective, config.seed, config.mlm_probability)
    work = work_of(trainable.model, config, run.precision)
    with Training(run, config, data, task, trainable, tokenizer, work, workload, task.draw) as training:
        accelerator, model, cutter, guard = run.accelerator, training.model, training.cutter, training.guard
        optimizer, scheduler = training.optimizer, training.scheduler
        for window in training.windows:  # the texts of one optimizer step
            for micro_batch in window.micro_batches(cutter):
                with accumulate(accelerator, model, micro_batch):
                    inputs, hidden_tokens = micro_batch.batch
                    loss = objective(model(**inputs).logits, hidden_tokens)  # summed over them, in chunks
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


def workload(config: MedicalMlmConfig, precision: str = "no") -> "Workload":
    """What `train` computes, from the model's config alone: no weights, no data. For `hf-accum plan`."""
    from transformers import AutoModelForMaskedLM

    from hf_accum.models.trainable import without_weights
    from hf_accum.tasks.language_modeling.chunked_loss import stop_before_output_layer
    from recipes.embedded.models import minilm

    model = without_weights(AutoModelForMaskedLM, config.model or minilm(), config, task_type="MASKED_LM")
    stop_before_output_layer(model)
    return work_of(model, config, precision)


def work_of(model: "nn.Module", config: MedicalMlmConfig, precision: str) -> "Workload":
    """What is computed with a model, on examples that are made up."""
    from hf_accum.models.optimizer import build_optimizer
    from hf_accum.tasks.language_modeling.chunked_loss import language_workload

    return language_workload(
        model,
        lambda model: build_optimizer(model, config.learning_rate, config.weight_decay),
        chunk_size=config.loss_chunk_size,
        max_length=config.max_length,
        share=min(1.0, 2 * config.mlm_probability),  # more than that are never hidden but in short texts
        precision=precision,
    )


def open_data(config: MedicalMlmConfig, ranks: "Ranks", tokenizer: "PreTrainedTokenizerBase") -> "SplitData":
    """The dataset of the flags, or the embedded one with the columns that it has."""
    from hf_accum.distributed.collectives import on_all_ranks
    from hf_accum.tasks.masked_lm.data import open_plain_texts
    from recipes.embedded.synopses import clinical_synopses

    dataset, group_column = config.dataset, config.group_column
    if dataset is None:
        dataset = on_all_ranks(ranks, clinical_synopses)[ranks.index]
        group_column = group_column or "disease"
    return open_plain_texts(
        dataset, ranks, config, tokenizer, text_column=config.text_column, group_column=group_column
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = parse(MedicalMlmConfig, __doc__ or "", arguments)
    run(lambda: train(config), config)


if __name__ == "__main__":
    main()
