"""Fine-tune a causal language model on medical text, or on instructions and their answers.

By default SmolLM2 with LoRA learns to define clinical terms as the Human Phenotype Ontology does. One's own model and
data go by flags: prompts and responses, conversations (only what the assistant says is learned), or plain text; with
QLoRA a model of some billion parameters fits on a small GPU:

    accelerate launch -m recipes.medical_lm --model meta-llama/Llama-3.2-1B-Instruct --quantization nf4 \
        --dataset notes.jsonl --prompt_column question --response_column answer --group_column patient
    accelerate launch -m recipes.medical_lm --dataset chats.jsonl --messages_column messages
    accelerate launch -m recipes.medical_lm --dataset reports.jsonl --text_column report
"""

from dataclasses import dataclass, field, replace
from typing import Any

from hf_accum import recipe  # its parts are imported when they are used: help and a wrong flag need no torch
from hf_accum.config.datasets import Datasets
from hf_accum.config.validation import COUNT_OR_NULL, require, require_count, require_not_empty
from recipes.embedded.definitions import term_definitions
from recipes.embedded.models import ORIGIN_OF_SMOLLM2, smollm2


@dataclass(frozen=True, kw_only=True)
class MedicalLmConfig(recipe.RecipeConfig):
    """How a row is read: as a text, a prompt and its response, or a conversation."""

    text_column: str | None = None
    """Column with a plain text, all of it to learn; longer ones than max_length are cut into consecutive parts.
    Default for a dataset of one's own: text; without one messages or conversations, or instruction, input, output."""
    prompt_column: str | None = None
    """Column with a prompt, which is read and not learned, where there is a response_column."""
    response_column: str | None = None
    """Column with the response to the prompt: the two are a conversation where the tokenizer has a chat template,
    otherwise a text with a line end between them."""
    input_column: str | None = None
    """Column with what the prompt is about, read behind it after a blank line; an empty one is left out."""
    messages_column: str | None = None
    """Column with a conversation, a list of messages with `role` and `content` (or `from` and `value`): the
    assistant's are learned."""
    tools_column: str | None = None
    """Column with the definitions of the tools that the assistant may call, which the chat template writes.
    Default: tools, if there is one."""
    loss_chunk_size: int | None = field(default=None, metadata=COUNT_OR_NULL)
    """Tokens whose logits stand in memory at once; null: as many as have 64 MiB of logits in float32."""
    num_samples: int = 3
    """Held-out examples for which the model writes an answer before the training and after it (samples.jsonl)."""
    sample_length: int = 48
    """The most tokens of such an answer."""
    max_length: int = 512
    """Tokens per example; longer instructions and conversations are truncated, and counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ways = ("text_column", "prompt_column", "messages_column")
        require_not_empty(self, *ways, "response_column", "input_column", "tools_column")
        given = [name for name in ways if getattr(self, name) is not None]
        for name in given[1:]:
            require(False, name, getattr(self, name), f"left out with `{given[0]}`: rows are read in one way")
        both = (self.prompt_column is None) == (self.response_column is None)
        require(both, "response_column", self.response_column, "given with `prompt_column`, and only with it")
        with_prompt = self.input_column is None or self.prompt_column is not None
        require(with_prompt, "input_column", self.input_column, "left out without `prompt_column`")
        with_messages = self.tools_column is None or self.messages_column is not None
        require(with_messages, "tools_column", self.tools_column, "left out without `messages_column`")
        require_count("num_samples", self.num_samples, "at least 0", least=0)
        require_count("sample_length", self.sample_length)


def train(config: MedicalLmConfig):
    """Train; returns the figures of the held-out part: the loss of a token, and the perplexity."""
    from hf_accum import accumulate
    from hf_accum.tasks.causal_lm.samples import samples_of

    run = recipe.StartedRun(config, workload)  # what is wrong with the folder, the launch or the model is said here
    tokenizer = recipe.load_tokenizer(config.model or smollm2(), config.trust)
    config, _ = resolved(config, run.ranks)  # which columns are read is said beside the result
    task, spec = task_of(config, tokenizer, run.precision), spec_of(config)
    task.check_metrics(config.best_metric)
    data = open_data(config, run.ranks, tokenizer)  # read once, before any weight: its size, its bad rows
    training = recipe.Training(run=run, config=config, data=data, task=task, spec=spec, processor=tokenizer)
    samples = samples_of(data, tokenizer, config.num_samples, config.sample_length, config.on_bad_row, run)
    if training.resumed.loaded is None:
        samples.show(training.plain_model, "before")
    with training:
        accelerator, model, capacity = training.accelerator, training.model, training.capacity
        optimizer, scheduler, nonfinite = training.optimizer, training.scheduler, training.nonfinite
        for window in training.windows:  # the texts of one optimizer step
            for micro_batch in window.micro_batches(capacity):
                with accumulate(accelerator, model, micro_batch):
                    loss = task.summed_loss(model, micro_batch.batch)  # summed over the tokens to predict, in chunks
                    accelerator.backward(micro_batch.scaled(loss))
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            if nonfinite.accepts(window, grad_norm):
                optimizer.step()
                scheduler.step()
            optimizer.zero_grad()
            training.step_done(window, grad_norm)
        figures = training.finish()
        samples.show(training.plain_model, "after")
        return figures


def task_of(config: MedicalLmConfig, tokenizer: Any, precision: str):
    """A text, of which some tokens are learned, and their loss in chunks. Without a tokenizer: for a plan."""
    from hf_accum.tasks.causal_lm.task import CausalTexts
    from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy

    return CausalTexts(tokenizer, ChunkedCrossEntropy(config.loss_chunk_size, precision), config.max_length)


def spec_of(config: MedicalLmConfig) -> "recipe.ModelSpec":
    """A causal model that gives the inputs of its output layer, by which the loss multiplies in chunks."""
    from transformers import AutoModelForCausalLM, PreTrainedModel

    from hf_accum.tasks.causal_lm.task import check_causal
    from hf_accum.tasks.language_modeling.chunked_loss import stop_before_output_layer

    name = config.model or smollm2()

    def prepare(model: PreTrainedModel) -> None:
        check_causal(model, name)
        stop_before_output_layer(model)

    how: dict[str, Any] = {"has_to_be": "a causal language model", "prepare": prepare}
    how |= {"origin": "" if config.model else ORIGIN_OF_SMOLLM2}
    return recipe.ModelSpec(AutoModelForCausalLM, name, "CAUSAL_LM", **how)


def workload(config: MedicalLmConfig, precision: str = "no") -> "recipe.Workload":
    """The same by the flags alone, for `hf-accum plan`."""
    return recipe.planned(spec_of(config), task_of(config, None, precision), config, precision)


def predictor(config: MedicalLmConfig, task: Any, max_new_tokens: int = 256):
    """What `hf-accum predict` writes behind a prompt."""
    from hf_accum.tasks.causal_lm.prediction import TextGenerator

    return TextGenerator(task, reader_of(config, task.tokenizer), max_new_tokens)


def open_data(config: MedicalLmConfig, ranks: "recipe.Ranks", tokenizer: Any):
    """The rows of the flags, or the embedded definitions, cut or truncated to `max_length`."""
    from hf_accum.tasks.causal_lm.data import open_passages

    config, dataset = resolved(config, ranks)
    return open_passages(dataset, ranks, config, reader_of(config, tokenizer), group_column=config.group_column)


def resolved(config: MedicalLmConfig, ranks: "recipe.Ranks") -> tuple[MedicalLmConfig, Datasets]:
    """The flags with the columns that rows have, and where the data is."""
    of_rows = {} if config.text_column else {"prompt_column": "prompt", "response_column": "response"}
    embedded = {"definitions": recipe.Embedded(term_definitions, {"group_column": "family", **of_rows})}
    config, dataset = recipe.with_dataset(config, ranks, embedded)
    return with_columns(config, dataset), dataset


def with_columns(config: MedicalLmConfig, dataset: Datasets) -> MedicalLmConfig:
    """The flags, with columns that the dataset has by the usual names, where none is named."""
    from hf_accum.tasks.causal_lm.columns import find_columns, find_tools

    if config.messages_column is not None and config.tools_column is None:
        return replace(config, tools_column=find_tools(dataset, config))
    if any(column is not None for column in (config.text_column, config.prompt_column, config.messages_column)):
        return config
    return replace(config, **find_columns(dataset, config))


def reader_of(config: MedicalLmConfig, tokenizer: Any):
    """How the flags have a row read."""
    from hf_accum.tasks.causal_lm.data import WholeTexts
    from hf_accum.tasks.causal_lm.instructions import Conversations, PromptsAndResponses

    if config.messages_column is not None:
        return Conversations(tokenizer, config.messages_column, config.max_length, config.tools_column)
    if config.prompt_column is not None and config.response_column is not None:
        of_prompt = (config.prompt_column, config.response_column, config.max_length, config.input_column)
        return PromptsAndResponses(tokenizer, *of_prompt)
    return WholeTexts(tokenizer, config.text_column or "text", config.max_length)


main = recipe.command(MedicalLmConfig, train, __doc__)

if __name__ == "__main__":
    main()
