"""Run by `accelerate launch`: each rank has other weights, until rank 0's are given to all.

Prints one JSON line from rank 0: for each tensor of the model the first value on every rank, before and after.
"""

import json

import torch
from torch import Tensor, nn

from hf_accum.distributed.collectives import broadcast_weights
from hf_accum.recipe import ranks_of, start_accelerator


class Model(nn.Module):
    """Trained and frozen parameters, and buffers of several types, kept and not."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.trained = nn.Linear(3, 2)
        self.narrow = nn.Parameter(torch.empty(2, dtype=torch.bfloat16))
        self.frozen = nn.Linear(3, 2, bias=False).requires_grad_(False)
        self.packed = nn.Parameter(torch.empty(4, dtype=torch.uint8), requires_grad=False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.empty(2, dtype=torch.bool), persistent=False)
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                tensor.fill_(value)

    def values(self) -> dict[str, float]:
        named: list[tuple[str, Tensor]] = [*self.named_parameters(), *self.named_buffers()]
        for name, tensor in named:
            assert len(set(tensor.flatten().tolist())) == 1, name
        return {name: float(tensor.flatten()[0]) for name, tensor in named}


def main() -> None:
    accelerator = start_accelerator()
    ranks = ranks_of(accelerator)
    model = Model(1 - ranks.index).to(accelerator.device)
    before = ranks.gather_objects(model.values())
    broadcast_weights(model, accelerator)
    after = ranks.gather_objects(model.values())
    if accelerator.is_main_process:
        print(json.dumps({"before": before, "after": after}))
    accelerator.end_training()


if __name__ == "__main__":
    main()
