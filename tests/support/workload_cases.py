"""Workloads of small and real models, and what they really take."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_accum.accumulation.example import Lengths
from hf_accum.config.lora import LoraConfig
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.models.lora import add_lora, checkpoint_activations
from hf_accum.models.optimizer import build_optimizer
from hf_accum.tuner.workload import Workload
from recipes.embedded.models import minilm

CPU = torch.device("cpu")


class Counter(TorchDispatchMode):
    """Peak of the bytes of live storages, by their addresses: the oracle, which shares nothing with the tuner."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        for tensor in there:
            self.see(tensor)

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self.sizes or not size:
            return
        self.sizes[address] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.gone, address)

    def gone(self, address: int) -> None:
        self.now -= self.sizes.pop(address)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return result


def peak_of_training(work: Workload, num_examples: int, length: int) -> int:
    """Two windows of two micro-batches and a step, for real: in the second the optimizer's state is there."""
    optimizer = work.optimizer(work.model)
    saved = [p.detach().clone() for p in work.model.parameters()]
    with Counter([*work.model.parameters(), *work.model.buffers()]) as counter:
        for _ in range(2):
            for _ in range(2):
                work.forward_backward(num_examples, length, CPU)
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        for parameter, before in zip(work.model.parameters(), saved, strict=True):
            parameter.copy_(before)
    return counter.peak


TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512, "vocab_size": 50},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 50,
    },
    "vit": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    },
}


def of_sizes(
    model: nn.Module,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    loss: Callable[[nn.Module, int, int, torch.device], Tensor],
    predict: Callable[[nn.Module, int, int, torch.device], object],
    max_length: int,
    *more: Any,
    **how: Any,
) -> Workload:
    """A workload whose batches are no more than their sizes, of which the functions make what they need."""
    return Workload(
        model,
        optimizer,
        lambda model, size: loss(model, *size),
        lambda model, size: predict(model, *size),
        lambda num_examples, length, device: (num_examples, length, device),
        max_length,
        *more,
        **how,
    )


def make_workload(architecture: str, *, lora: bool, checkpointing: bool, max_length: int = 512) -> Workload:
    torch.manual_seed(0)
    is_image = architecture == "vit"
    auto: Any = AutoModelForImageClassification if is_image else AutoModelForSequenceClassification
    if architecture == "minilm":
        config = AutoConfig.from_pretrained(minilm(), num_labels=3)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        base = auto.from_pretrained(minilm(), config=config)
    else:
        more = {"num_labels": 3} | ({} if is_image else {"pad_token_id": 0})
        base = auto.from_config(AutoConfig.for_model(architecture, **TINY[architecture] | more))
    targets = ["c_attn", "c_proj", "c_fc"] if architecture == "gpt2" else "all-linear"
    model: nn.Module = base
    if lora:
        model = add_lora(base, LoraConfig(rank=4, target_modules=targets), task_type="SEQ_CLS")
    if checkpointing:
        checkpoint_activations(base)
    model.train()

    def forward(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        if is_image:
            return model(pixel_values=torch.zeros(num_examples, 3, 64, 64, device=device)).logits
        ids = torch.full((num_examples, length), 5, device=device)
        if num_examples == 1:
            return model(input_ids=ids).logits
        mask = torch.ones_like(ids)
        mask[-1, -1] = 0
        return model(input_ids=ids * mask, attention_mask=mask).logits

    def loss(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        labels = torch.zeros(num_examples, dtype=torch.long, device=device)
        logits = forward(model, num_examples, length, device)
        return nn.functional.cross_entropy(logits.float(), labels, reduction="sum")

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(model, OptimizationFlags(learning_rate=1e-3, weight_decay=0.01))

    return of_sizes(model, optimizer, loss, forward, max_length, lengths=Lengths(vary=not is_image))
