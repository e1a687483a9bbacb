"""A model of two heads: a loss of the whole text, and one of its tokens with half the weight.

The two have other numbers of items: each is divided by its own number in the whole window, before they are added.
So the window's weight is 1 for each text, and the token losses carry the ratio of the two numbers.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from hf_accum import accumulate, windows_of


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.body = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.of_text, self.of_tokens = nn.Linear(16, 2), nn.Linear(16, 3)

    def forward(self, ids):
        states = self.body(self.words(ids))
        return self.of_text(states.mean(1)), self.of_tokens(states)


def batches(number, size):
    torch.manual_seed(0)
    for index in range(number):
        ids = torch.randint(0, 50, (size, 5 + index % 4))
        yield {"ids": ids, "label": ids[:, 0] % 2, "tags": torch.where(ids > 10, ids % 3, -100)}


def summed_loss(model, batch, num_texts, num_tags):
    text, tokens = model(batch["ids"])
    of_texts = F.cross_entropy(text, batch["label"], reduction="sum")
    of_tokens = F.cross_entropy(tokens.flatten(0, 1), batch["tags"].flatten(), reduction="sum")
    return of_texts + 0.5 * of_tokens * num_texts / num_tags


def main(capacity=3, num_batches=12):
    torch.manual_seed(1)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    model = TwoHeads()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loader = list(batches(num_batches, 6))
    counts = [sum(int((b["tags"] >= 0).sum()) for b in loader[i : i + 4]) for i in range(0, len(loader), 4)]
    for window, num_tags in zip(windows_of(accelerator, loader, examples_per_step=24), counts, strict=True):
        for micro_batch in window.micro_batches(capacity):
            with accumulate(accelerator, model, micro_batch):
                loss = summed_loss(model, micro_batch.batch, window.window.num_items, num_tags)
                accelerator.backward(micro_batch.scaled(loss))
        optimizer.step()
        optimizer.zero_grad()
    return model


if __name__ == "__main__":
    main()
