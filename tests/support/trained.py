"""Models that are trained for a few steps, so that every adapter does something."""

from typing import Any

import torch
import torch.nn.functional as F
from tiny import make_inputs
from torch import Tensor, nn

from hf_accum.config.lora import LoraConfig
from hf_accum.models.loading import Pretrained
from hf_accum.models.lora import add_lora

LORA = LoraConfig(rank=2, alpha=6.0)


LABELS = torch.tensor([0, 2, 1])


ONE_OF_EACH_KIND = ("bert", "distilbert", "llama")


def adapt(pretrained: Pretrained, lora: LoraConfig = LORA, **how: Any) -> Any:
    return add_lora(pretrained.model, lora, task_type="SEQ_CLS", new_modules=pretrained.new_modules, **how)


def train(model: nn.Module, num_steps: int = 3) -> None:
    """Enough for every adapter to do something: their second matrices start at zero."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(num_steps):
        F.cross_entropy(model(**make_inputs()).logits, LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()


def logits_of(model: nn.Module) -> Tensor:
    """In eval mode; the model stays in its own."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(**make_inputs(seed=1)).logits
    model.train(was_training)
    return logits
