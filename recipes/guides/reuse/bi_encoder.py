"""A bi-encoder in the manner of sentence-transformers: the negatives of a pair are all others of 32 pairs.

At most `capacity` pairs are in memory at once. Two encoders here; one for both sides goes as well.
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from hf_accum import GradCache, InBatchNegatives, accumulate, windows_of


def pairs(number):  # a query is the begin of its document
    torch.manual_seed(0)
    documents = torch.randint(1, 100, (number, 12))
    return [{"query": document[:4], "document": document} for document in documents]


def make_encoder():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=100, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes))


def encode(model, ids):  # (num_pairs, width): the mean of the last states
    return model(ids).last_hidden_state.mean(1)


def main(capacity=4, num_pairs=96):
    torch.manual_seed(1)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    encoders = [make_encoder(), make_encoder()]
    optimizer = torch.optim.AdamW([p for encoder in encoders for p in encoder.parameters()], lr=1e-3)
    *encoders, optimizer = accelerator.prepare(*encoders, optimizer)
    cache = GradCache(accelerator, InBatchNegatives(temperature=0.05))
    for window in windows_of(accelerator, DataLoader(pairs(num_pairs), batch_size=32), examples_per_step=32):
        for micro_batch in cache.micro_batches(window, capacity):  # each twice: without a graph, and with one
            with accumulate(accelerator, encoders, micro_batch):
                sides = micro_batch.batch["query"], micro_batch.batch["document"]
                vectors = [encode(encoder, ids) for encoder, ids in zip(encoders, sides, strict=True)]
                loss = cache.scaled(micro_batch, *vectors)
                if loss is not None:
                    accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return torch.nn.ModuleList(encoders)


if __name__ == "__main__":
    main()
