"""Workloads of tiny models of each architecture, to trace and to compare with real tensors."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification
from workload_cases import of_sizes

from hf_accum.accumulation.example import Lengths
from hf_accum.accumulation.losses import CrossEntropy
from hf_accum.config.lora import LoraConfig
from hf_accum.models.lora import add_lora, checkpoint_activations
from hf_accum.tuner.prediction import Prediction, predict
from hf_accum.tuner.tracing import Trace, Tracer
from hf_accum.tuner.workload import Workload

MAX_LENGTH = 32


SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": MAX_LENGTH,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


ARCHITECTURES = {
    "bert": SIZES,
    "distilbert": {
        "vocab_size": 40,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 64,
        "max_position_embeddings": MAX_LENGTH,
    },
    "gpt2": {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": MAX_LENGTH},
    "llama": SIZES | {"num_key_value_heads": 1},
    "vit": {name: size for name, size in SIZES.items() if not name.endswith("_id")}
    | {"image_size": 24, "patch_size": 4},
}


@dataclass(frozen=True)
class Case:
    architecture: str
    lora: bool = False
    checkpointing: bool = False
    precision: str = "no"

    def __str__(self) -> str:
        parts = (self.architecture, "lora" if self.lora else "full", "checkpointing" if self.checkpointing else "")
        return " ".join(part for part in (*parts, "" if self.precision == "no" else self.precision) if part)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)


def make_workload(case: Case) -> Workload:
    torch.manual_seed(0)
    is_image = case.architecture == "vit"
    more = {"num_labels": 3} | ({} if is_image else {"pad_token_id": 0})
    config = AutoConfig.for_model(case.architecture, **ARCHITECTURES[case.architecture] | more)
    auto = AutoModelForImageClassification if is_image else AutoModelForSequenceClassification
    base = auto.from_config(config)
    model: nn.Module = base
    if case.lora:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # peft, of GPT-2's layers
            model = add_lora(base, LoraConfig(rank=2, target_modules="all-linear"), task_type="SEQ_CLS")
    if case.checkpointing:
        checkpoint_activations(base)
    model.train()

    def inputs(num_examples: int, length: int, device: torch.device) -> dict[str, Tensor]:
        if is_image:
            return {"pixel_values": torch.zeros(num_examples, 3, 24, 24, device=device)}
        ids = torch.full((num_examples, length), 5, device=device)
        if num_examples == 1:
            return {"input_ids": ids}
        mask = torch.ones_like(ids)
        mask[-1, -1] = 0
        return {"input_ids": ids * mask, "attention_mask": mask}

    def loss(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        labels = torch.zeros(num_examples, dtype=torch.long, device=device)
        return CrossEntropy()(model(**inputs(num_examples, length, device)).logits, labels)

    def predicted(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        return model(**inputs(num_examples, length, device)).logits.argmax(-1)

    return of_sizes(model, make_optimizer, loss, predicted, MAX_LENGTH, Lengths(vary=not is_image), case.precision)


@cache
def predicted(case: Case) -> tuple[Workload, Prediction]:
    workload = make_workload(case)
    return workload, predict(workload)


def traces_of(tracer: Tracer, points: Iterable[tuple[int, int]]) -> list[Trace]:
    """The traces of micro-batches of (num_examples, length)."""
    with tracer.started() as trace:
        return [trace(num_examples, length) for num_examples, length in points]
