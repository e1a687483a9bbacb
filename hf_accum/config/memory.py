"""The flags of memory and speed: how a window is executed, and how weights and activations are kept."""

from dataclasses import dataclass, field
from typing import Literal

from hf_accum.byte_sizes import parse_bytes
from hf_accum.config.validation import ABOVE_0_OR_NULL, COUNT_OR_AUTO, require


@dataclass(frozen=True, kw_only=True)
class MemoryFlags:
    """Memory and speed."""

    micro_batch_size: int | Literal["auto"] = field(default="auto", metadata=COUNT_OR_AUTO)
    """The most examples in one forward on one rank; auto: as many as fit, for each length."""
    memory_budget: str | int = "auto"
    """Device memory per rank that the run may use, as 6GiB (on a CPU: of tensors); auto: what is free, less a
    reserve."""
    max_probe_seconds: float | None = field(default=5.0, metadata=ABOVE_0_OR_NULL)
    """micro_batch_size auto does not try a micro-batch that computes longer than this, where memory is plenty (one
    and a half times what a window takes) and the micro-batch is more than a quarter of a window: it would be no
    faster. null: the largest is found all the same."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward instead of keeping them; auto: where not one example of max_length
    fits without (found with micro_batch_size auto)."""
    quantization: Literal["none", "nf4"] = "none"
    """Weights of the frozen linear layers in 4 bits (QLoRA, double quantised), by bitsandbytes."""
    frozen_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What weights that are not trained are kept in; auto: the type of the run's mixed precision, float32 without
    one. What is trained is in float32."""
    activation_offload: bool = False
    """Keep activations in host memory between forward and backward, on a GPU: slower, and no other way fits more."""
    balance_ranks: bool | Literal["auto"] = "auto"
    """Even out the work of each window over the ranks; auto: where there are several and lengths vary."""


def check_memory(config: MemoryFlags) -> None:
    """Check the budget, and how activations are kept."""
    require(
        not (config.activation_offload and config.gradient_checkpointing is True),
        "activation_offload",
        "true",
        "false with `gradient_checkpointing true`: what that keeps is not offloaded",
    )
    if config.memory_budget != "auto":
        try:
            parse_bytes(config.memory_budget)
        except ValueError:
            require(False, "memory_budget", config.memory_budget, "auto, or bytes as 6GiB or 500MB")
