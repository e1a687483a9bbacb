"""Run by `accelerate launch`: gradients of windows spread over ranks, against one unsplit batch on each rank.

Arguments: the names of the tasks. Prints one JSON line from rank 0: for each case the largest relative difference on
any rank.
"""

import json
import random
import sys

import torch
from torch import Tensor
from window_cases import (
    TASKS,
    batch,
    largest_relative_difference,
    make_examples,
    make_model,
    make_window,
    unsplit_gradient,
)

from hf_accum import accumulate
from hf_accum.accumulation.example import Example
from hf_accum.recipe import ranks_of, start_accelerator


def spread(how: str, examples: list[Example], num_ranks: int) -> list[list[Example]]:
    """The examples of each rank."""
    match how:
        case "evenly":
            return [examples[rank::num_ranks] for rank in range(num_ranks)]
        case "all on the last rank":
            return [[] for _ in range(num_ranks - 1)] + [examples]
        case _:
            draw = random.Random(len(examples))
            owners = [draw.randrange(num_ranks) for _ in examples]
            return [[e for e, o in zip(examples, owners, strict=True) if o == rank] for rank in range(num_ranks)]


def main(names: list[str]) -> None:
    """Windows of 1 to 17 examples, three ways to spread them, every micro-batch size."""
    accelerator = start_accelerator()
    ranks = ranks_of(accelerator)
    differences: dict[str, float] = {}
    for name in names:
        task = TASKS[name]
        plain = make_model(task)
        model, optimizer = accelerator.prepare(plain, torch.optim.SGD(plain.parameters(), lr=0.0))
        for size in range(1, 18):
            draw = random.Random(size)
            examples = make_examples(task, [draw.randint(2, 12) for _ in range(size)], seed=size)
            reference, _ = unsplit_gradient(plain, task, examples)
            for how in ("evenly", "all on the last rank", "at random"):
                shares = spread(how, examples, ranks.count)
                mine = shares[ranks.index]
                for micro_batch_size in range(1, max(map(len, shares)) + 1):  # larger ones cut no differently
                    window = make_window(mine, examples[0], rank=ranks.index, whole=examples)
                    for micro_batch in window.micro_batches(micro_batch_size):
                        with accumulate(accelerator, model, micro_batch):
                            inputs, labels = batch(micro_batch.examples, accelerator.device)
                            loss: Tensor = task.objective(model(**inputs).logits, labels)
                            accelerator.backward(micro_batch.scaled(loss))
                    difference = largest_relative_difference(plain, reference)
                    case = f"{name}, {size} examples {how}, micro-batches of {micro_batch_size}"
                    differences[case] = max(ranks.gather_objects(difference))
                    optimizer.zero_grad()
    if accelerator.is_main_process:
        device = accelerator.device.type
        print(json.dumps({"num_ranks": ranks.count, "device": device, "differences": differences}))
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1:])
