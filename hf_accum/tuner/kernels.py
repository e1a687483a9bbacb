"""CUDA's kernels in the place of the CPU's, in a trace: what they keep for the backward, and need meanwhile.

A trace runs on fake CPU tensors, where attention, dropout and autocast choose otherwise than on a card. What was read
for it: torch's `sdp_utils.cpp`, `attention.cpp` and `CublasHandlePool.cpp` on the main branch of 2026 (the first two
hold the choice of attention and the path of each kernel), and of the installed torch 2.13 the headers
`sdp_utils_cpp.h`, `Context.h`, `autocast_mode.h` and `mem_eff_attention/kernel_backward.h`; of flash attention's
backward `flash_api.cpp` of flash-attention 2. No figure here was measured on a card.

The same on both, as read: layer norm keeps mean and rstd in float32 for what is float32, GELU its input, a linear
layer input and weight, an embedding its ids. What kernels take within themselves is in
`hf_accum.tuner.kernel_temporaries`. Not seen: attention within `nn.MultiheadAttention`; fused RMS norm, which few
models of transformers use.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from hf_accum.tuner.kernel_temporaries import HALVES, KernelTemporaries

Backend = Literal["flash", "efficient", "math"]
Capability = tuple[int, int]

_IS_TRACED: ContextVar[bool] = ContextVar("card_is_traced", default=False)

_NEWEST = (12, 1)
"""The newest card that the kernels of attention know."""

_IN_FLOAT32 = {
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "reciprocal",
    "rsqrt",
    "pow",
    "__rpow__",
    "softplus",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "cosine_similarity",
    "nll_loss",
    "kl_div",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "cdist",
    "logsumexp",
    "norm",
    "softmax",
    "log_softmax",
}
"""What autocast computes in float32 on CUDA, and on a CPU in the type that comes in: what models use of the list in
torch 2.13's autocast_mode.h; `cross_entropy` for the operations that it is made of.
"""

_INTO_FLOAT32 = {"sum", "prod", "cumsum", "cumprod"}
"""Likewise, but of these only the result is in float32."""


@contextmanager
def cuda_kernels(capability: Capability) -> Iterator[None]:
    """Have forwards and backwards of this thread keep and need what they do on a card of this compute capability.

    To be entered within a fake mode: of real tensors on a CPU most of these kernels do not exist.
    """
    token = _IS_TRACED.set(True)
    try:
        with _Functions(capability), KernelTemporaries():
            yield
    finally:
        _IS_TRACED.reset(token)


def is_card_traced() -> bool:
    """Whether what runs in this thread is a trace for a card, on tensors that say that they are on a CPU."""
    return _IS_TRACED.get()


def attention_backend(
    dtype: torch.dtype,
    capability: Capability,
    head_dim: int,
    *,
    value_dim: int | None = None,
    has_mask: bool = False,
    dropout: float = 0.0,
    is_grouped: bool = False,
    trains: bool = True,
    is_regular: bool = True,
) -> Backend:
    """The kernel that `scaled_dot_product_attention` takes on a card: flash, then memory-efficient, or plain matmuls.

    `is_grouped`: fewer heads of keys than of queries, by `enable_gqa`. `trains`: gradients will be computed.
    `is_regular`: four dimensions, the last one dense, and as many queries as keys if it is causal.

    cuDNN's is left out: in torch's own order it comes behind plain matmuls, which take anything. Only capabilities
    9.x and 10.x have it first, where cuDNN is newer than 9.15.1: cards of data centres.
    The memory-efficient kernel is taken to refuse grouped keys, as up to torch 2.13; later ones may take them.

    Source: `sdp_utils.cpp`, the constraints of each kernel and `select_sdp_backend`.
    """
    value_dim = head_dim if value_dim is None else value_dim
    if capability > _NEWEST or capability < (5, 0):
        return "math"
    has_flash = dtype in HALVES and capability >= (8, 0) and head_dim == value_dim <= 256
    has_flash &= not trains or _flash_trains(capability, head_dim, dropout)
    if has_flash and is_regular and not has_mask:
        return "flash"
    has_type = dtype in (torch.float32, torch.float16) or (dtype == torch.bfloat16 and capability >= (8, 0))
    multiple = _aligned_to(dtype, capability)
    is_aligned = head_dim % multiple == 0 and value_dim % multiple == 0
    return "efficient" if is_regular and has_type and is_aligned and not is_grouped else "math"


def workspace_bytes(capability: Capability) -> int:
    """What matrix products hold all through training, at most: memory of the allocator that no tensor has.

    cuBLAS has a workspace for each of two threads, that of the forward and that of the backward: 2 * 4 MiB + 8 * 16
    KiB, or 32 MiB from Hopper on. For cuBLASLt, which adds a bias, there may be 1 MiB more. Environment variables
    (CUBLAS_WORKSPACE_CONFIG, CUBLASLT_WORKSPACE_SIZE) change that, and torch after 2.13 may free it after each use.

    Source: `parseChosenWorkspaceSize` and `parseCUDABlasLtWorkspaceSize` in `CublasHandlePool.cpp`.
    """
    cublas = 2**25 if capability >= (9, 0) else 2 * 2**22 + 8 * 2**14
    return 2 * (cublas + 2**20)


def _flash_trains(capability: Capability, head_dim: int, dropout: float) -> bool:
    has_less_shared_memory = (8, 6) <= capability <= (8, 9) or (12, 0) <= capability <= (12, 1)
    return not has_less_shared_memory or head_dim <= 192 or (head_dim > 224 and dropout == 0)


def _aligned_to(dtype: torch.dtype, capability: Capability) -> int:
    """What a head's size has to be a multiple of for the memory-efficient kernel: 16 bytes for tensor cores."""
    if dtype in HALVES:
        return 8 if capability >= (7, 0) else 1
    return 4 if capability >= (8, 0) else 1


class _Functions(TorchFunctionMode):
    """Puts CUDA's attention, dropout and casts of autocast in the place of the CPU's."""

    def __init__(self, capability: Capability) -> None:
        super().__init__()
        self.capability = capability

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is Tensor.backward:
            return self._backward(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            return _attention(self.capability, *args, **kwargs)
        if name == "dropout":
            return _dropout(func, *args, **kwargs)
        if (name in _IN_FLOAT32 or name in _INTO_FLOAT32) and torch.is_autocast_enabled("cpu"):
            if name in _INTO_FLOAT32:
                halves = any(isinstance(arg, Tensor) and arg.dtype in HALVES for arg in args[:1])
                return func(*args, **({"dtype": torch.float32} if halves else {}) | kwargs)
            args, kwargs = tree_map_only(Tensor, _as_float32, (args, kwargs))
        return func(*args, **kwargs)

    def _backward(
        self,
        tensor: Tensor,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = (),
    ) -> None:
        """`Tensor.backward` with this mode on, for what checkpointing computes again: torch's own leaves it off."""
        gradient = torch.ones_like(tensor) if gradient is None else gradient
        keep = create_graph if retain_graph is None else retain_graph
        with self:
            _engine_run_backward(
                (tensor,), (gradient,), keep, create_graph, inputs or (), allow_unreachable=True, accumulate_grad=True
            )


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALVES else tensor


def _dropout(func: Any, input: Tensor, p: float = 0.5, training: bool = True, *more: Any, **kwargs: Any) -> Tensor:
    """Dropout whose mask is a byte an element; a CPU's has the input's type. In place both make one of that type."""
    is_in_place = any(more) or kwargs.get("inplace", False)
    training = kwargs.pop("train", training)
    if training and 0 < p < 1 and input.numel() and not is_in_place:
        return torch.native_dropout(input, p, True)[0]
    return func(input, p, training, *more, **kwargs)


def _attention(
    capability: Capability,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `scaled_dot_product_attention` does on a card, by the names of its own arguments."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (_cast(tensor, dtype) for tensor in (query, key, value))
        attn_mask = None if attn_mask is None else _cast(attn_mask, dtype)
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    backend = attention_backend(
        query.dtype,
        capability,
        query.shape[-1],
        value_dim=value.shape[-1],
        has_mask=attn_mask is not None,
        dropout=dropout_p,
        is_grouped=query.shape[-3] != key.shape[-3],
        trains=trains,
        is_regular=query.ndim == 4
        and all(tensor.stride(-1) == 1 for tensor in (query, key, value))
        and not (is_causal and query.shape[-2] != key.shape[-2] and attn_mask is None),
    )
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    with torch.autocast(device, enabled=False):
        if backend == "flash":
            padded = [_padded(tensor) for tensor in (query, key, value)]
            output = torch.ops.aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, scale=scale)[0]
            return output[..., : value.shape[-1]] if output.shape[-1] != value.shape[-1] else output
        mask = attn_mask
        if mask is not None and mask.dtype == torch.bool:
            mask = _additive(mask, query.dtype)
        if backend == "efficient":
            if mask is not None:
                mask = _aligned(mask).expand(*query.shape[:-1], key.shape[-2])
            return torch.ops.aten._scaled_dot_product_efficient_attention(
                query, key, value, mask, trains, dropout_p, is_causal, scale=scale
            )[0]
        return _plain(query, key, value, mask, dropout_p, is_causal, scale)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def _padded(tensor: Tensor) -> Tensor:
    """A head of a size that flash attention can read: a copy, where it is no multiple of 8."""
    return F.pad(tensor, (0, -tensor.shape[-1] % 8)) if tensor.shape[-1] % 8 else tensor


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(mask, 0.0, torch.scalar_tensor(float("-inf"), dtype=dtype, device=mask.device))


def _aligned(mask: Tensor) -> Tensor:
    """A mask whose rows start at multiples of 16 bytes: a wider copy, where they do not."""
    if mask.stride(-1) == 1 and all(stride % 8 == 0 for stride in mask.stride()[:-1]):
        return mask
    length = mask.shape[-1]
    return F.pad(mask, (0, 8 - length % 8))[..., :length]


def _plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, is_causal: bool, scale: float
) -> Tensor:
    """Attention by matmuls, in float32 for 16-bit types: what torch composes, with the mask of CUDA's dropout."""
    dtype = query.dtype
    query, key, value = (_as_float32(tensor) for tensor in (query, key, value))
    if is_causal:
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        mask = _additive(ones.tril(), query.dtype)
    groups = query.shape[-3] // key.shape[-3] if query.ndim > 2 else 1
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, -3) for tensor in (key, value))
    root = math.sqrt(abs(scale))
    scores = (query * math.copysign(root, scale)) @ (key.transpose(-2, -1) * root)
    if mask is not None:
        scores.add_(mask)
    scores = torch.ops.aten._safe_softmax(scores, -1)
    if dropout > 0:
        scores = torch.native_dropout(scores, dropout, True)[0]
    return (scores @ value).to(dtype)
