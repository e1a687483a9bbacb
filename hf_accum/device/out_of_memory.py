"""What counts as out of memory, over backends; and letting go of what a failed micro-batch holds."""

import ctypes
import errno
import gc
import inspect
import sys
import traceback
from contextlib import suppress
from enum import Enum

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Failure(Enum):
    """What an error says of memory."""

    OUT_OF_MEMORY = "out of memory"
    AMBIGUOUS = "ambiguous"
    """Libraries say so when their workspace does not fit, and for other reasons: one retry in smaller pieces."""
    OTHER = "other"


# Texts in lower case, looked for anywhere in a message. What kills a device's context comes first: nothing that
# runs after it can be trusted, whatever else the message says.
NEVER_RETRIED = (
    "illegal memory access",
    "illegal instruction",
    "illegal address",
    "misaligned address",
    "device assert",
    "device-side assert triggered",  # not the hint at device-side assertions, which every failed call gets
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable ecc",
    "memory access fault",
    "out of resource: shared memory",  # of one multiprocessor: Triton's, and no smaller batch helps
)
OUT_OF_MEMORY = (
    "out of memory",  # CUDA, HIP, MPS, XPU, NPU, Triton, cudaMalloc inside libraries
    "out_of_memory",  # oneDNN, CUDA driver
    "outofmemory",
    "out_of_device_memory",  # Level Zero, Vulkan
    "out_of_host_memory",
    "out_of_resources",  # Level Zero
    "outofdevicememory",
    "memoryallocation",  # cudaErrorMemoryAllocation
    "can't allocate memory",  # torch's CPU allocator
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "status_alloc_failed",  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE
    "statusallocfailed",  # MIOpen
    "rocblas_status_memory_error",
    "resource_exhausted",  # XLA
    "insufficient memory",
    "cufft_alloc_failed",
    "device_allocation_failed",  # cuDNN
    "invalid buffer size",  # MPS
)
AMBIGUOUS = (
    "cublas_status_not_initialized",
    "cublas_status_internal_error",
    "cublas_status_execution_failed",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
    "cudnn_status_execution_failed",
    "cudnn_status_not_supported",
    "cusparse_status_insufficient_resources",
    "cusolver_status_internal_error",
    "rocblas_status_internal_error",
    "miopenstatusinternalerror",
    "miopenstatusunknownerror",
    "unable to find an engine to execute this computation",
    "could not create a primitive",
    "could not execute a primitive",
    "invalid configuration argument",  # a launch grid too large
    "canuse32bitindexmath",
)
# An assertion of an allocator, wherever in it: both texts together.
_ALLOCATOR_ASSERT = ("internal assert failed", "cachingallocator")


def classify(error: BaseException) -> Failure:
    """What an error, or what caused it (`__cause__`), says of memory.

    Only errors that a library or the interpreter raises count (RuntimeError, MemoryError, OSError): a ValueError
    that speaks of memory is somebody's message.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__
    found = [_classify_one(link) for link in chain]
    if None in found:
        return Failure.OTHER
    for failure in (Failure.OUT_OF_MEMORY, Failure.AMBIGUOUS):
        if failure in found:
            return failure
    return Failure.OTHER


def _classify_one(error: BaseException) -> Failure | None:
    """None: never to be retried."""
    message = str(error).lower()
    if isinstance(error, RuntimeError | MemoryError | OSError) and any(text in message for text in NEVER_RETRIED):
        return None
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Failure.OUT_OF_MEMORY
    if isinstance(error, OSError):
        return Failure.OUT_OF_MEMORY if error.errno == errno.ENOMEM else Failure.OTHER
    if not isinstance(error, RuntimeError):
        return Failure.OTHER
    if any(text in message for text in OUT_OF_MEMORY) or all(text in message for text in _ALLOCATOR_ASSERT):
        return Failure.OUT_OF_MEMORY
    return Failure.AMBIGUOUS if any(text in message for text in AMBIGUOUS) else Failure.OTHER


def release(error: BaseException, device: torch.device | str) -> None:
    """Free what the frames of a failed forward or backward hold, so that the memory is there for the next try.

    Frames that have ended are cleared. The frame that goes on (the training loop's own) keeps its variables, but
    tensors among them let go of the graph that they head, and so of the activations in it.
    """
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and link not in seen:
        seen.append(link)
        for frame, _ in traceback.walk_tb(link.__traceback__):
            variables = frame.f_locals
            for leaf in tree_leaves(list(variables.values())):
                if isinstance(leaf, Tensor):
                    # Of several views that one operation made (a split) torch refuses all once one has let go.
                    with suppress(RuntimeError):
                        _let_go_of_graph(leaf)
            if isinstance(variables, dict) and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
                variables.clear()  # before Python 3.13 a copy, which the frame would keep
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    _empty_queue()
    gc.collect()
    empty_cache(device)


def _empty_queue() -> None:
    """Let go of what a failed backward had not come to: it waits in a queue of torch's engine, with its graph.

    The queue of an accelerator has a thread, which throws it away at once; that of the CPU is the calling thread's
    own, and looked at in its next backward.
    """
    with torch.inference_mode(False), torch.enable_grad():
        torch.zeros((), requires_grad=True).clone().backward()


def _let_go_of_graph(tensor: Tensor) -> None:
    if tensor.grad_fn is None:
        return
    if not tensor._is_view():
        tensor.detach_()
        return
    base = tensor._base
    if base is not None and not base.is_leaf:
        base.detach_()
        # A view makes its node anew from its base, once that has another version.
        autograd = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
        autograd._unsafe_set_version_counter((base,), (base._version + 1,))
        _ = tensor.grad_fn


def empty_cache(device: torch.device | str) -> None:
    """Give memory that is cached, but not in use, back to the device; on a CPU to the system."""
    device = torch.device(device)
    if device.type != "cpu":
        try:
            torch.accelerator.memory.empty_cache()
        except RuntimeError:  # of MPS before mid-2026, which has its own
            torch.get_device_module(device).empty_cache()
        return
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
