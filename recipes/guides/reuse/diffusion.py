"""A model without transformers, in the manner of diffusion: a small net learns the noise that was added to images.

The noise comes with the batch, so that it is the same however the batch is cut.
"""

import torch
from accelerate import Accelerator
from torch import nn

from hf_accum import accumulate, find_capacity, windows_of


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        layers = (nn.Conv2d(4, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images, time):
        return self.layers(torch.cat([images, time.expand(-1, 1, *images.shape[2:])], 1))


def batches(number, size):
    torch.manual_seed(0)
    shape = (size, 3, 16, 16)
    return [(torch.rand(shape), torch.randn(shape), torch.rand(size, 1, 1, 1)) for _ in range(number)]


def summed_loss(model, batch):
    images, noise, time = batch
    guess = model((1 - time) * images + time * noise, time)
    return (guess - noise).square().mean((1, 2, 3)).sum()


def main(budget="auto", num_batches=6):
    torch.manual_seed(1)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    model = Denoiser()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    loader = batches(num_batches, 16)
    capacity = find_capacity(model, optimizer, summed_loss, loader[0], max_examples=32, memory_budget=budget)
    print(capacity)
    for window in windows_of(accelerator, loader, batches_per_step=2):
        for micro_batch in window.micro_batches(capacity):
            with accumulate(accelerator, model, micro_batch):
                accelerator.backward(micro_batch.scaled(summed_loss(model, micro_batch.batch)))
        optimizer.step()
        optimizer.zero_grad()
    return model


if __name__ == "__main__":
    main()
