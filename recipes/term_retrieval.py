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

from hf_accum.cli.exit import run
from hf_accum.cli.parser import parse
from hf_accum.config.recipe import RecipeConfig, require

# Everything heavy is imported by `train`: help and a wrong flag need no torch.
if TYPE_CHECKING:
    from torch import nn

    from hf_accum.data.split import SplitData
    from hf_accum.distributed.ranks import Ranks
    from hf_accum.models.pooling import Pooling
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
    from transformers import AutoModel

    from hf_accum.accumulation.accumulate import accumulate, discard_gradients
    from hf_accum.accumulation.grad_cache import InBatchNegatives, RepresentationCache
    from hf_accum.models.tokenizers import load_tokenizer
    from hf_accum.models.trainable import load_trainable
    from hf_accum.run.training import StartedRun, Training
    from hf_accum.tasks.retrieval.task import TextRetrieval, check_retrieval_metric
    from recipes.embedded.models import minilm

    # What is wrong with the launch, the folder or the model is said before the data is read.
    run = StartedRun(config)
    model_name = config.model or minilm()
    pooling = pooling_of(config)
    config = replace(config, pooling=pooling)
    workload(config)
    tokenizer = load_tokenizer(model_name, config.trust)
    check_retrieval_metric(config.best_metric)

    # The data is read once before any weight is loaded: its size, its bad rows.
    data = open_data(config, run.ranks)
    run.find_resume(config, data)
    trainable = load_trainable(
        AutoModel,
        model_name,
        tokenizer,
        config,
        task_type="FEATURE_EXTRACTION",
        precision=run.precision,
        device=run.device,
    )
    objective = InBatchNegatives(config.temperature)
    columns = config.query_column, config.document_column
    task = TextRetrieval(*columns, tokenizer, objective, config.max_length, pooling)
    work = work_of(trainable.model, config, run.precision)
    with Training(run, config, data, task, trainable, tokenizer, work, workload) as training:
        accelerator, model, cutter, guard = run.accelerator, training.model, training.cutter, training.guard
        optimizer, scheduler = training.optimizer, training.scheduler
        for window in training.windows:  # the pairs of one optimizer step, whose loss is no sum over them
            cache = RepresentationCache(window, objective, run.ranks)
            for micro_batch in window.micro_batches(
                cutter, no_grad_pass=run.ranks
            ):  # all without a graph, then all with
                with accumulate(accelerator, model, micro_batch):
                    if micro_batch.is_no_grad_pass:
                        cache.keep(micro_batch, task.vectors(model, micro_batch.batch))
                    else:
                        gradient = cache.gradient(micro_batch)  # of the loss over all ranks, by each vector
                        vectors = task.vectors(model, micro_batch.batch)
                        accelerator.backward((vectors * gradient).sum() * micro_batch.scale)
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


def workload(config: TermRetrievalConfig, precision: str = "no") -> "Workload":
    """What `train` computes, from the model's config alone: no weights, no data. For `hf-accum plan`."""
    from transformers import AutoModel

    from hf_accum.models.trainable import without_weights
    from recipes.embedded.models import minilm

    model = without_weights(AutoModel, config.model or minilm(), config, task_type="FEATURE_EXTRACTION")
    return work_of(model, config, precision)


def work_of(model: "nn.Module", config: TermRetrievalConfig, precision: str) -> "Workload":
    """What is computed with a model, on texts that are made up."""
    from hf_accum.models.optimizer import build_optimizer
    from hf_accum.tasks.retrieval.task import retrieval_workload

    return retrieval_workload(
        model,
        lambda model: build_optimizer(model, config.learning_rate, config.weight_decay),
        pooling=pooling_of(config),
        max_length=config.max_length,
        precision=precision,
    )


def pooling_of(config: TermRetrievalConfig) -> "Pooling":
    """That of the flag, or that of the model, or the mean."""
    from hf_accum.models.pooling import own_pooling
    from recipes.embedded.models import minilm

    return config.pooling or own_pooling(config.model or minilm(), config.trust) or "mean"


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


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    config = parse(TermRetrievalConfig, __doc__ or "", arguments)
    run(lambda: train(config), config)


if __name__ == "__main__":
    main()
