"""Windows of pairs with a known contrastive gradient: a tiny BERT in float64, one unsplit batch in plain torch."""

import random
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from failing import Failing
from torch import Tensor, nn
from transformers import BertModel
from window_cases import make_window, tiny_bert

from hf_accum import accumulate
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.grad_cache import InBatchNegatives, RepresentationCache
from hf_accum.distributed.ranks import Ranks
from hf_accum.tasks.retrieval.task import encode_texts
from hf_accum.tasks.tokenization import pad

TEMPERATURE = 0.2
NUM_DOCUMENTS = 6  # of which some pairs share one


def make_encoder(dropout: float = 0.0) -> nn.Module:
    """In train mode."""
    torch.manual_seed(0)
    return BertModel(tiny_bert(dropout), add_pooling_layer=False).double().train()


def make_pairs(number: int, seed: int = 0) -> list[Example]:
    """Queries of 2 to 5 tokens with documents of 3 to 12, of which some are the same."""
    draw = random.Random(seed)
    pairs = []
    for index in range(number):
        key = draw.randrange(NUM_DOCUMENTS)
        of_key = random.Random(key)
        document = [of_key.randrange(1, 50) for _ in range(of_key.randint(3, 12))]
        query = [draw.randrange(1, 50) for _ in range(draw.randint(2, 5))]
        parts = (
            Example(f"{index}:query", len(query), 1.0, {"input_ids": query}),
            Example(f"{index}:document", len(document), 1.0, {"input_ids": document, "key": key}),
        )
        pairs.append(Example(str(index), len(query) + len(document), 1.0, {}, 0, parts))
    return pairs


def vectors_of(model: nn.Module, texts: Sequence[Example]) -> Tensor:
    """One forward."""
    return encode_texts(model, pad(texts, 0), "mean")


def unsplit(model: nn.Module, pairs: Sequence[Example]) -> tuple[dict[str, Tensor], float]:
    """The oracle: all queries and all documents in a forward each, torch's cross-entropy over the rows of cosines."""
    queries = F.normalize(vectors_of(model, [pair.parts[0] for pair in pairs]), dim=1)
    documents = F.normalize(vectors_of(model, [pair.parts[1] for pair in pairs]), dim=1)
    losses = []
    for index, pair in enumerate(pairs):
        key = pair.parts[1].features["key"]
        others = [i for i, other in enumerate(pairs) if other.parts[1].features["key"] != key]
        scores = documents[[index, *others]] @ queries[index] / TEMPERATURE
        losses.append(torch.logsumexp(scores, 0) - scores[0])
    loss = torch.stack(losses).mean()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named])
    return {name: g for (name, _), g in zip(named, gradients, strict=True)}, loss.item()


def run_window(
    accelerator: Accelerator,
    model: nn.Module,
    pairs: Sequence[Example],
    whole: Sequence[Example],
    ranks: Ranks,
    size: int,
    chunk_size: int = 1024,
    failing: Failing | None = None,
) -> WindowExecution:
    """The loop of the recipe, over this rank's pairs of a window."""
    window = make_window(pairs, whole[0], rank=ranks.index, whole=whole)
    cache = RepresentationCache(window, InBatchNegatives(TEMPERATURE, chunk_size), ranks)
    for micro_batch in window.micro_batches(size, no_grad_pass=ranks):
        armed = nullcontext() if failing is None else failing.during(micro_batch)
        with accumulate(accelerator, model, micro_batch), armed:
            if micro_batch.is_no_grad_pass:
                cache.keep(micro_batch, vectors_of(model, micro_batch.examples))
            else:
                gradient = cache.gradient(micro_batch)
                product = (vectors_of(model, micro_batch.examples) * gradient).sum()
                accelerator.backward(micro_batch.scaled(product, noted=cache.loss(micro_batch)))
    return window
