"""Train an encoder of sentences to find the text that belongs to another: a term's definition, a title's abstract.

By default MiniLM learns to find the definitions of clinical terms by their names and synonyms. One's own pairs of
texts and model go by flags:

    accelerate launch -m recipes.term_retrieval --dataset pairs.jsonl --query_column title --document_column abstract

The negatives of a pair are all other pairs of the window, on all ranks, at the memory of one micro-batch. The window
has `--effective_batch_size` pairs; a micro-batch has texts, of which a pair has two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hf_accum.cli.command import command
from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.validation import require

if TYPE_CHECKING:  # everything heavy is imported in functions: help and a wrong flag need no torch
    from hf_accum.data.split import SplitData
    from hf_accum.distributed.ranks import Ranks
    from hf_accum.models.spec import ModelSpec
    from hf_accum.tasks.retrieval.task import TextRetrieval
    from hf_accum.tuner.workload import Workload


@dataclass(frozen=True, kw_only=True)
class TermRetrievalConfig(RecipeConfig):
    """The flags of this recipe, and those that every recipe shares."""

    query_column: str = "term"
    """Column with the texts that are looked up."""
    document_column: str = "definition"
    """Column with the text to be found for each."""
    temperature: float = 0.05
    """By which cosines are divided: the smaller, the more the nearest wrong documents count."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """What of the last states is a text's vector: their mean, or that of the first or last token; default: as the
    model was made (where it has the files of sentence-transformers), else the mean."""
    effective_batch_size: int = 256
    """Pairs in a window, over all ranks."""
    max_length: int = 128
    """Tokens of a text; longer ones are cut."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        for name in ("query_column", "document_column"):
            require(getattr(self, name) != "", name, "''", "not empty")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        require(self.effective_batch_size > 1, "effective_batch_size", self.effective_batch_size, "at least 2")


def train(config: TermRetrievalConfig) -> Mapping[str, Any]:
    """Run the recipe; returns the final evaluation."""
    from hf_accum import StartedRun, Training, accumulate, load_tokenizer
    from hf_accum.accumulation.grad_cache import RepresentationCache

    run = StartedRun(config, workload)  # what is wrong with the folder, the launch or the model is said here
    tokenizer = load_tokenizer(model_name(config), config.trust)
    task, spec = task_of(config, tokenizer), spec_of(config)
    task.check_metrics(config.best_metric)
    data = open_data(config, run.ranks)  # read once, before any weight: its size, its bad rows
    config = replace(config, pooling=task.pooling)
    with Training(run=run, config=config, data=data, task=task, spec=spec, processor=tokenizer) as training:
        accelerator, model, capacity = training.accelerator, training.model, training.capacity
        optimizer, scheduler, nonfinite = training.optimizer, training.scheduler, training.nonfinite
        summed_loss = task.summed_loss
        for window in training.windows:  # the pairs of one optimizer step
            cache = RepresentationCache(window, task.objective, run.ranks)  # whose loss is no sum over them
            for micro_batch in window.micro_batches(capacity, no_grad_pass=run.ranks):
                with accumulate(accelerator, model, micro_batch):
                    if micro_batch.is_no_grad_pass:  # all of them first, to know all vectors
                        cache.keep(micro_batch, task.vectors(model, micro_batch.batch))
                    else:
                        gradient = cache.gradient(micro_batch)  # of the loss over all ranks, by each vector
                        product = summed_loss(model, (micro_batch.batch, gradient))
                        accelerator.backward(micro_batch.scaled(product, noted=cache.loss(micro_batch)))
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            if nonfinite.accepts(window, grad_norm):
                optimizer.step()
                scheduler.step()
            optimizer.zero_grad()
            training.step_done(window, grad_norm)
        return training.finish()


def task_of(config: TermRetrievalConfig, tokenizer: Any) -> "TextRetrieval":
    """What an example is, and its loss. Without a tokenizer: for a plan."""
    from hf_accum.accumulation.grad_cache import InBatchNegatives
    from hf_accum.models.pooling import own_pooling
    from hf_accum.tasks.retrieval.task import TextRetrieval

    pooling = config.pooling or own_pooling(model_name(config), config.trust) or "mean"
    columns, objective = (config.query_column, config.document_column), InBatchNegatives(config.temperature)
    return TextRetrieval(*columns, tokenizer, objective, config.max_length, pooling)


def spec_of(config: TermRetrievalConfig) -> "ModelSpec":
    """Which model is trained."""
    from transformers import AutoModel

    from hf_accum.models.spec import ModelSpec

    return ModelSpec(AutoModel, model_name(config), "FEATURE_EXTRACTION")


def model_name(config: TermRetrievalConfig) -> str:
    """That of the flags, or the embedded one."""
    from recipes.embedded.models import minilm

    return config.model or minilm()


def workload(config: TermRetrievalConfig, precision: str = "no") -> "Workload":
    """What `train` computes, from the model's config alone: no weights, no data. For `hf-accum plan`."""
    from hf_accum.tuner.workload import planned

    return planned(spec_of(config), task_of(config, None), config, precision)


def open_data(config: TermRetrievalConfig, ranks: "Ranks") -> "SplitData":
    """The dataset of the flags, or the embedded one with the columns that it has."""
    from hf_accum.distributed.collectives import on_all_ranks
    from hf_accum.tasks.retrieval.data import open_text_pairs
    from recipes.embedded.terms import clinical_terms

    dataset, group_column = config.dataset, config.group_column
    if dataset is None:
        dataset = on_all_ranks(ranks, clinical_terms)[ranks.index]
        group_column = group_column or "id"
    columns = config.query_column, config.document_column
    return open_text_pairs(dataset, ranks, config, columns, group_column=group_column or config.document_column)


main = command(TermRetrievalConfig, train, __doc__)

if __name__ == "__main__":
    main()
