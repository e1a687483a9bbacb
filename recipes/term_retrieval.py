"""Train an encoder of sentences to find the text that belongs to another: a term's definition, a title's abstract.

By default MiniLM learns to find the definitions of clinical terms by their names and synonyms. One's own pairs of
texts and model go by flags:

    accelerate launch -m recipes.term_retrieval --dataset pairs.jsonl --query_column title --document_column abstract

The negatives of a pair are all other pairs of the window, on all ranks, at the memory of one micro-batch. The window
has `--effective_batch_size` pairs; a micro-batch has texts, of which a pair has two.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from hf_accum import recipe  # its parts are imported when they are used: help and a wrong flag need no torch
from hf_accum.config.validation import require, require_not_empty
from recipes.embedded.models import minilm
from recipes.embedded.terms import clinical_terms


@dataclass(frozen=True, kw_only=True)
class TermRetrievalConfig(recipe.RecipeConfig):
    """The two texts of a pair, and how their vectors are compared."""

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
        super().__post_init__()
        require_not_empty(self, "query_column", "document_column", rule="not empty")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        require(self.effective_batch_size > 1, "effective_batch_size", self.effective_batch_size, "at least 2")


def train(config: TermRetrievalConfig):
    """Train; returns the figures of the held-out part: recall and mean reciprocal rank of documents."""
    from hf_accum import accumulate
    from hf_accum.accumulation.grad_cache import RepresentationCache

    run = recipe.StartedRun(config, workload)  # what is wrong with the folder, the launch or the model is said here
    tokenizer = recipe.load_tokenizer(config.model or minilm(), config.trust)
    task, spec = task_of(config, tokenizer), spec_of(config)
    task.check_metrics(config.best_metric)
    data = open_data(config, run.ranks)  # read once, before any weight: its size, its bad rows
    config = replace(config, pooling=task.pooling)
    with recipe.Training(run=run, config=config, data=data, task=task, spec=spec, processor=tokenizer) as training:
        accelerator, model, capacity = training.accelerator, training.model, training.capacity
        optimizer, scheduler, nonfinite = training.optimizer, training.scheduler, training.nonfinite
        for window in training.windows:  # the pairs of one optimizer step
            cache = RepresentationCache(window, task.objective, run.ranks)  # whose loss is no sum over them
            for micro_batch in window.micro_batches(capacity, no_grad_pass=run.ranks):
                with accumulate(accelerator, model, micro_batch):
                    if micro_batch.is_no_grad_pass:  # all of them first, to know all vectors
                        cache.keep(micro_batch, task.vectors(model, micro_batch.batch))
                    else:
                        gradient = cache.gradient(micro_batch)  # of the loss over all ranks, by each vector
                        product = task.summed_loss(model, (micro_batch.batch, gradient))
                        accelerator.backward(micro_batch.scaled(product, noted=cache.loss(micro_batch)))
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            if nonfinite.accepts(window, grad_norm):
                optimizer.step()
                scheduler.step()
            optimizer.zero_grad()
            training.step_done(window, grad_norm)
        return training.finish()


def task_of(config: TermRetrievalConfig, tokenizer: Any):
    """A pair of texts, and the loss of finding one by the other. Without a tokenizer: for a plan."""
    from hf_accum.accumulation.grad_cache import InBatchNegatives
    from hf_accum.models.pooling import own_pooling
    from hf_accum.tasks.retrieval.task import TextRetrieval

    pooling = config.pooling or own_pooling(config.model or minilm(), config.trust) or "mean"
    columns, objective = (config.query_column, config.document_column), InBatchNegatives(config.temperature)
    return TextRetrieval(*columns, tokenizer, objective, config.max_length, pooling)


def spec_of(config: TermRetrievalConfig) -> "recipe.ModelSpec":
    """An encoder without a head: its last states are pooled."""
    from transformers import AutoModel

    return recipe.ModelSpec(AutoModel, config.model or minilm(), "FEATURE_EXTRACTION")


def workload(config: TermRetrievalConfig, precision: str = "no") -> "recipe.Workload":
    """The same by the flags alone, for `hf-accum plan`."""
    return recipe.planned(spec_of(config), task_of(config, None), config, precision)


def predictor(config: TermRetrievalConfig, task: Any):
    """What `hf-accum predict` tells of a text: its vector."""
    from hf_accum.tasks.retrieval.prediction import EmbeddingPredictor

    return EmbeddingPredictor(task)


def open_data(config: TermRetrievalConfig, ranks: "recipe.Ranks"):
    """The pairs of the flags, or the embedded terms and their definitions."""
    from hf_accum.tasks.retrieval.data import open_text_pairs

    embedded = {"terms": recipe.Embedded(clinical_terms, {"group_column": "id"})}
    config, dataset = recipe.with_dataset(config, ranks, embedded)
    columns = config.query_column, config.document_column
    return open_text_pairs(
        dataset, ranks, config, columns, group_column=config.group_column or config.document_column
    )


main = recipe.command(TermRetrievalConfig, train, __doc__)

if __name__ == "__main__":
    main()
