"""Fine-tune a causal language model on medical text, or on instructions and their answers.

By default SmolLM2 with LoRA learns to define clinical terms as the Human Phenotype Ontology does. One's own model and
data go by flags: prompts and responses, conversations (only what the assistant says is learned), or plain text; with
QLoRA a model of some billion parameters fits on a small GPU:

    accelerate launch -m recipes.medical_lm --model meta-llama/Llama-3.2-1B-Instruct --quantization nf4 \
        --dataset notes.jsonl --prompt_column question --response_column answer --group_column patient
    accelerate launch -m recipes.medical_lm --dataset chats.jsonl --messages_column messages
    accelerate launch -m recipes.medical_lm --dataset reports.jsonl --text_column report
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import run
from hf_accum.cli.parser import parse
from hf_accum.config.recipe import RecipeConfig, require, require_count
from hf_accum.errors import UserError

# Everything heavy is imported by `train`: help and a wrong flag need no torch.
if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from hf_accum.distributed.ranks import Ranks
    from hf_accum.tasks.causal_lm.data import PassageData, Reader
    from hf_accum.tuner.workload import Workload


@dataclass(frozen=True, kw_only=True)
class MedicalLmConfig(RecipeConfig):
    """The flags of this recipe, and those that every recipe shares."""

    text_column: str | None = None
    """Column with a plain text, all of it to learn; longer ones than max_length are cut into consecutive parts.
    Default for a dataset of one's own: text."""
    prompt_column: str | None = None
    """Column with a prompt, which is read and not learned, where there is a response_column."""
    response_column: str | None = None
    """Column with the response to the prompt: the two are a conversation where the tokenizer has a chat template,
    otherwise a text with a line end between them."""
    messages_column: str | None = None
    """Column with a conversation, a list of messages with `role` and `content`: the assistant's are learned."""
    loss_chunk_size: int = 512
    """Tokens whose logits stand in memory at once."""
    num_samples: int = 3
    """Held-out examples for which the model writes an answer before the training and after it (samples.jsonl)."""
    sample_length: int = 48
    """The most tokens of such an answer."""
    max_length: int = 512
    """Tokens per example; longer instructions and conversations are truncated, and counted."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        ways = ("text_column", "prompt_column", "messages_column")
        for name in (*ways, "response_column"):
            require(getattr(self, name) != "", name, "''", "left out, or not empty")
        given = [name for name in ways if getattr(self, name) is not None]
        for name in given[1:]:
            require(False, name, getattr(self, name), f"left out with `{given[0]}`: rows are read in one way")
        both = (self.prompt_column is None) == (self.response_column is None)
        require(both, "response_column", self.response_column, "given with `prompt_column`, and only with it")
        require_count("loss_chunk_size", self.loss_chunk_size)
        require_count("num_samples", self.num_samples, "at least 0", least=0)
        require_count("sample_length", self.sample_length)


def train(config: MedicalLmConfig) -> Mapping[str, Any]:
    """Run the recipe; returns the final evaluation."""
    from transformers import AutoModelForCausalLM

    from hf_accum.accumulation.accumulate import accumulate, discard_gradients
    from hf_accum.distributed.collectives import on_all_ranks
    from hf_accum.models.tokenizers import load_tokenizer
    from hf_accum.models.trainable import load_trainable
    from hf_accum.run.training import StartedRun, Training
    from hf_accum.tasks.causal_lm.samples import Samples, first_held_out
    from hf_accum.tasks.causal_lm.task import ACCURACY, CausalTexts, check_causal
    from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy, stop_before_output_layer
    from hf_accum.tasks.language_modeling.perplexity import check_token_metric
    from recipes.embedded.models import smollm2

    # What is wrong with the launch, the folder or the model is said before the data is read.
    run = StartedRun(config)
    check_token_metric(config.best_metric, ACCURACY)
    model_name = config.model or on_all_ranks(run.ranks, smollm2)[run.ranks.index]
    workload(config)
    tokenizer = load_tokenizer(model_name, config.doors)

    # The data is read once before any weight is loaded: its size, its bad rows, what is too long.
    data = open_data(config, run.ranks, tokenizer)
    run.find_resume(config, data)
    trainable = load_trainable(
        AutoModelForCausalLM,
        model_name,
        tokenizer,
        config,
        task_type="CAUSAL_LM",
        precision=run.precision,
        device=run.device,
    )
    if trainable.new_modules:
        raise UserError(
            f"--model {model_name}: has to be a causal language model: it has no weights for "
            f"{', '.join(trainable.new_modules)}"
        )
    check_causal(trainable.base, model_name)
    layer = stop_before_output_layer(trainable.base)
    objective = ChunkedCrossEntropy(layer, config.loss_chunk_size, run.precision)
    assert isinstance(tokenizer.pad_token_id, int)
    task = CausalTexts(objective, tokenizer.pad_token_id)
    work = work_of(trainable.model, config, run.precision)
    training = Training(run, config, data, task, trainable, tokenizer, work, workload)
    samples = None
    if run.ranks.index == 0 and config.num_samples:
        held_out = first_held_out(data, config.num_samples, config.on_bad_row)
        samples = Samples(held_out, tokenizer, config.sample_length, run.folder)
        if run.resumed.loaded is None:
            samples.show(trainable.model, "before")
    with training:
        accelerator, model, cutter, guard = run.accelerator, training.model, training.cutter, training.guard
        optimizer, scheduler = training.optimizer, training.scheduler
        for window in training.windows:  # the texts of one optimizer step
            for micro_batch in window.micro_batches(cutter):
                with accumulate(accelerator, model, micro_batch):
                    inputs, next_tokens = micro_batch.batch
                    loss = objective(model(**inputs).logits, next_tokens)  # summed over them, in chunks
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
        figures = training.finish()
    if samples is not None:
        samples.show(trainable.model, "after")
    return figures


def workload(config: MedicalLmConfig, precision: str = "no") -> "Workload":
    """What `train` computes, from the model's config alone: no weights, no data. For `hf-accum plan`."""
    from transformers import AutoModelForCausalLM

    from hf_accum.models.trainable import without_weights
    from hf_accum.tasks.causal_lm.task import check_causal
    from hf_accum.tasks.language_modeling.chunked_loss import stop_before_output_layer
    from recipes.embedded.models import smollm2

    model_name = config.model or smollm2()
    model = without_weights(AutoModelForCausalLM, model_name, config, task_type="CAUSAL_LM")
    check_causal(model, model_name)
    stop_before_output_layer(model)
    return work_of(model, config, precision)


def work_of(model: "nn.Module", config: MedicalLmConfig, precision: str) -> "Workload":
    """What is computed with a model, on examples that are made up."""
    from hf_accum.models.optimizer import build_optimizer
    from hf_accum.tasks.language_modeling.chunked_loss import language_workload

    return language_workload(
        model,
        lambda model: build_optimizer(model, config.learning_rate, config.weight_decay),
        chunk_size=config.loss_chunk_size,
        max_length=config.max_length,
        precision=precision,
    )


def open_data(config: MedicalLmConfig, ranks: "Ranks", tokenizer: "PreTrainedTokenizerBase") -> "PassageData":
    """The dataset of the flags, or the embedded one with the columns that it has."""
    from hf_accum.distributed.collectives import on_all_ranks
    from hf_accum.tasks.causal_lm.data import open_passages
    from recipes.embedded.definitions import term_definitions

    dataset, group_column = config.dataset, config.group_column
    if dataset is None:
        dataset = on_all_ranks(ranks, term_definitions)[ranks.index]
        group_column = group_column or "family"
    return open_passages(dataset, ranks, config, reader_of(config, tokenizer), group_column=group_column)


def reader_of(config: MedicalLmConfig, tokenizer: "PreTrainedTokenizerBase") -> "Reader":
    """How the flags have a row read."""
    from hf_accum.tasks.causal_lm.data import WholeTexts
    from hf_accum.tasks.causal_lm.instructions import Conversations, PromptsAndResponses

    if config.messages_column is not None:
        return Conversations(tokenizer, config.messages_column, config.max_length)
    if config.prompt_column is not None and config.response_column is not None:
        return PromptsAndResponses(tokenizer, config.prompt_column, config.response_column, config.max_length)
    if config.dataset is None and config.text_column is None:
        return PromptsAndResponses(tokenizer, "prompt", "response", config.max_length)
    return WholeTexts(tokenizer, config.text_column or "text", config.max_length)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = parse(MedicalLmConfig, __doc__ or "", arguments)
    run(lambda: train(config), config)


if __name__ == "__main__":
    main()
