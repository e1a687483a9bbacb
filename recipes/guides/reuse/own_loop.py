"""PyTorch's own loop: a stream, a model and an optimizer that accelerate did not prepare.

Of accelerate there is the device and the ranks. With several ranks all read the stream, and share its examples out.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from hf_accum import SquaredError, accumulate, windows_of


class Readings(IterableDataset):
    def __init__(self, number):
        self.number = number

    def __iter__(self):
        for index in range(self.number):
            x = torch.tensor([index % 7, index % 5, 1.0])
            yield x, x @ torch.tensor([1.0, -2.0, 0.5])


def main(capacity=4, number=50):
    torch.manual_seed(1)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(accelerator.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss_of = SquaredError()
    for window in windows_of(accelerator, DataLoader(Readings(number), batch_size=8), examples_per_step=20):
        for micro_batch in window.micro_batches(capacity):
            with accumulate(accelerator, model, micro_batch):
                x, y = micro_batch.batch
                accelerator.backward(micro_batch.scaled(loss_of(model(x), y)))
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.is_main_process:
            print(f"step {window.window.step}: loss {float(window.loss_sum()) / window.window.num_items:.4f}")
    return model


if __name__ == "__main__":
    main()
