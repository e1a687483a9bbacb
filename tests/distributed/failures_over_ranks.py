"""Run by `accelerate launch`: memory that runs out on one rank, on the other, or on both, at every operation.

Arguments: how the model is wrapped, what happens, and the seconds after which processes that are still in the same
window say where they are and end.

`plain` is not wrapped, `prepared` is by accelerate, in DistributedDataParallel, `used` is too and has had a forward
before the window (the first one is special).

`once` fails at every operation in turn, always in a new model, and prints one JSON line from rank 0: the number of
operations of each rank's micro-batches, and for each case the largest relative difference of the gradients and
of the weights on any rank, the optimizer's steps and the replays of each. `never fits` fails on rank 0 for good; the
other rank waits for its gradients.
"""

import faulthandler
import gc
import json
import sys

import torch
from accelerate import Accelerator
from failing import Failing
from torch import Tensor, nn
from transformers import get_scheduler
from window_cases import Task, batch, largest_relative_difference, make_examples, make_window

from hf_accum import accumulate
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.losses import CrossEntropy
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.models.optimizer import build_optimizer
from hf_accum.recipe import ranks_of, start_accelerator

TASK = Task(
    CrossEntropy(torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64), 0.2),
    lambda logits, labels: nn.functional.cross_entropy(
        logits, labels, torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64), label_smoothing=0.2
    ),
)
LENGTHS = (7, 6, 5, 4, 3)  # the even ones are rank 0's
MAX_NORM, LEARNING_RATE = 0.01, 0.01


class Small(nn.Module):
    """The mean of tokens, through one hidden layer; with a buffer, as most models have one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 6)
        self.hidden = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1)
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
        return self.head(torch.tanh(self.hidden(mean * self.scale)))


def make_small() -> Small:
    torch.manual_seed(0)
    return Small().double().train()


def oracle(examples: list[Example]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradient of one unsplit batch, and the weights after plain torch's step."""
    model = make_small()
    inputs, labels = batch(examples)
    TASK.whole_loss(model(**inputs), labels).backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM) > MAX_NORM
    build_optimizer(model, OptimizationFlags(learning_rate=LEARNING_RATE, weight_decay=0.1)).step()
    return gradient, {name: p.detach().clone() for name, p in model.named_parameters()}


def run_window(accelerator: Accelerator, model: nn.Module, window: WindowExecution, failing: Failing) -> None:
    for micro_batch in window.micro_batches(2):
        with accumulate(accelerator, model, micro_batch), failing.during(micro_batch):
            inputs, labels = batch(micro_batch.examples)
            loss = TASK.objective(model(**inputs), labels)
            accelerator.backward(micro_batch.scaled(loss))


def main(wrapped: str, how: str, timeout: float) -> None:
    accelerator = start_accelerator()
    ranks = ranks_of(accelerator)
    examples = make_examples(TASK, LENGTHS)
    mine = examples[ranks.index :: ranks.count]
    gradient, weights_after = oracle(examples)

    def one_window(failing: Failing) -> dict[str, float | list[int]]:
        faulthandler.dump_traceback_later(timeout, exit=True)  # of this window alone
        plain = make_small()
        model = plain if wrapped == "plain" else accelerator.prepare_model(plain)
        assert (model is plain) == (wrapped == "plain")
        if wrapped == "used":
            with torch.no_grad():
                model(**batch(examples)[0])
        optimizer = build_optimizer(plain, OptimizationFlags(learning_rate=LEARNING_RATE, weight_decay=0.1))
        scheduler = get_scheduler("linear", optimizer, 0, 10)
        prepared = accelerator.prepare_optimizer(optimizer)
        window = make_window(mine, examples[0], rank=ranks.index, whole=examples)
        run_window(accelerator, model, window, failing)
        difference = largest_relative_difference(plain, gradient)
        accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
        prepared.step()
        scheduler.step()
        prepared.zero_grad()
        weights = dict(plain.named_parameters())
        steps = {int(state["step"]) for state in optimizer.state.values()} | {scheduler.last_epoch}
        outcome = (
            difference,
            max(float((weights[name].detach() - expected).abs().max()) for name, expected in weights_after.items()),
            sorted(steps),
            window.num_oom_replays,
            float(window.loss_sum()),
        )
        accelerator._optimizers.clear()
        accelerator._models.clear()
        differences, of_weights, steps, replays, losses = zip(*ranks.gather_objects(outcome), strict=True)
        return {
            "gradients": max(differences),
            "weights": max(of_weights),
            "steps": sorted({step for some in steps for step in some}),
            "replays": list(replays),
            "loss": sum(losses),
        }

    if how == "never fits":
        if accelerator.is_main_process:
            one_window(Failing(at=3, above=0))
        else:
            one_window(Failing())
        raise AssertionError("a step was made without rank 0's gradients")

    gc.collect()
    gc.freeze()  # what is there is not searched for garbage after each failure
    counting = Failing()
    cases = {"clean": one_window(counting)}
    numbers = ranks.gather_objects(counting.num_operations)
    for at in range(1, max(numbers) + 1):
        here = [at if at <= number else None for number in numbers]
        # On both: as far from each other as can be, so that they are not in the same phase.
        apart = [at, (at + numbers[1] // 2) % numbers[1] + 1] if at <= numbers[0] else [None, None]
        for name, fail_at in (
            ("rank 0", [here[0], None]),
            ("rank 1", [None, here[1]]),
            ("both", here),
            ("both, apart", apart),
        ):
            if fail_at != [None, None]:
                cases[f"{name} at {at}: {fail_at}"] = one_window(Failing(fail_at[ranks.index]))
    if accelerator.is_main_process:
        print(json.dumps({"num_operations": numbers, "cases": cases}))
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
