"""What counts as out of memory, both ways, and that a failed micro-batch lets go of its activations."""

import builtins
import errno
import gc
import sys
import types
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launching import run
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_accum.device.live_bytes import LiveBytes
from hf_accum.device.out_of_memory import Failure, classify, release

# What torch's check of every CUDA and HIP call appends.
ASYNCHRONOUS = (
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)

OUT_OF_MEMORY = {
    "CUDA": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 5.93 GiB of which 7.56 MiB "
        "is free. Including non-PyTorch memory, this process has 5.92 GiB memory in use. Of the allocated memory "
        "5.72 GiB is allocated by PyTorch, and 95.36 MiB is reserved by PyTorch but unallocated."
    ),
    "CUDA, older": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 7.79 GiB total capacity)"),
    "CUDA call": RuntimeError("CUDA error: out of memory\n" + ASYNCHRONOUS),
    "CUDA runtime": RuntimeError("cudaErrorMemoryAllocation: out of memory"),
    "CUDA driver": RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
    "HIP": torch.OutOfMemoryError("HIP out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of"),
    "HIP call": RuntimeError("HIP error: out of memory\n" + ASYNCHRONOUS.replace("CUDA", "HIP")),
    "HIP name": RuntimeError("hipErrorOutOfMemory"),
    "MPS": RuntimeError(
        "MPS backend out of memory (MPS allocated: 17.91 GB, other allocations: 5.33 MB, max allowed: 18.13 GB). "
        "Tried to allocate 375.40 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable"
    ),
    "XPU": torch.OutOfMemoryError("XPU out of memory. Tried to allocate 14.90 GiB. GPU 0 has a total capacity of"),
    "Level Zero memory": RuntimeError(
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"
    ),
    "Level Zero host": RuntimeError("level_zero backend failed with error: 38 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)"),
    "Level Zero resources": RuntimeError(
        "Native API failed. Native API returns: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"
    ),
    "Level Zero, older": RuntimeError("Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)"),
    "Level Zero itself": RuntimeError("ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"),
    "Vulkan": RuntimeError("vkAllocateMemory: ErrorOutOfDeviceMemory"),
    "NPU": RuntimeError(
        "NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 29.50 GiB total capacity; 27.11 GiB already allocated)"
    ),
    "NPU runtime": RuntimeError("EL0004: [PID: 7] Failed to allocate memory.\n Possible Cause: Available memory is"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuSPARSE": RuntimeError("CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`"),
    "cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    "cuFFT": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "hipBLAS": RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    "MIOpen": RuntimeError("MIOpen Error: miopenStatusAllocFailed"),
    "rocBLAS": RuntimeError("rocBLAS error: rocblas_status_memory_error when calling rocblas_create_handle"),
    "torch on a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 40000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "torch on Windows": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate "
        "8589934592 bytes."
    ),
    "shared memory": RuntimeError("unable to mmap 4096 bytes from file </torch_7_8_0>: Cannot allocate memory (12)"),
    "C++": RuntimeError("std::bad_alloc"),
    "C++ on Windows": RuntimeError("bad allocation"),
    "C++, bare": MemoryError("std::bad_alloc"),
    "Python": MemoryError(),
    "system": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "system, by name": BlockingIOError(errno.ENOMEM, "fork"),
    "XLA": RuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes: Used 20.10G of 15.48G hbm."
    ),
    "XLA, short": RuntimeError("Bad StatusOr access: RESOURCE_EXHAUSTED: Attempting to reserve 8.00G at the bottom"),
    "oneDNN": RuntimeError("oneDNN error: dnnl_out_of_memory"),
    "allocator": RuntimeError(
        '!handles_.at(i) INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":406, please report '
        "a bug to PyTorch."
    ),
    "allocator of HIP": RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/hip/HIPCachingAllocator.cpp":838, please report a bug'
    ),
    "Triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "NCCL": RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
}
AMBIGUOUS = {
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "cuBLAS inside": RuntimeError(
        "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx( handle, opa`"
    ),
    "cuBLAS failed": RuntimeError(
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k, &alpha`"
    ),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    "cuDNN inside": RuntimeError(
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR\nYou can try to repro this exception using the following code"
    ),
    "cuDNN failed": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "cuDNN, 32 bit": RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
    ),
    "no engine": RuntimeError("GET was unable to find an engine to execute this computation"),
    "cuSPARSE": RuntimeError("CUDA error: CUSPARSE_STATUS_INSUFFICIENT_RESOURCES when calling `cusparseSpMM(`"),
    "cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnSsyevd`"),
    "rocBLAS": RuntimeError("rocBLAS error: rocblas_status_internal_error"),
    "MIOpen": RuntimeError("MIOpen Error: miopenStatusInternalError"),
    "MIOpen unknown": RuntimeError("miopenStatusUnknownError"),
    "oneDNN": RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
    "oneDNN failed": RuntimeError("could not execute a primitive"),
    "launch grid": RuntimeError("CUDA error: invalid configuration argument\n" + ASYNCHRONOUS),
    "indices": RuntimeError(
        "Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true, but got false."
    ),
}
NEVER_RETRIED = {
    "illegal access": RuntimeError("CUDA error: an illegal memory access was encountered\n" + ASYNCHRONOUS),
    "HIP illegal access": RuntimeError("HIP error: an illegal memory access was encountered"),
    "device assert": RuntimeError("CUDA error: device-side assert triggered\n" + ASYNCHRONOUS),
    "device assert on XPU": RuntimeError("device assert was triggered"),
    "misaligned": RuntimeError("CUDA error: misaligned address"),
    "instruction": RuntimeError("CUDA error: an illegal instruction was encountered"),
    "launch": RuntimeError("CUDA error: unspecified launch failure"),
    "timeout": RuntimeError("CUDA error: the launch timed out and was terminated"),
    "ECC": RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    "stack": RuntimeError("CUDA error: hardware stack error"),
    "ROCm": RuntimeError("Memory access fault by GPU node-1 on address 0x7f. Reason: Page not present"),
    "Triton": RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376."),
}
ORDINARY = {
    "shapes": RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    "no value": RuntimeError(""),
    "devices": RuntimeError("Expected all tensors to be on the same device, but found at least two devices"),
    "an assertion": RuntimeError('index >= 0 INTERNAL ASSERT FAILED at "ivalue.h":42, please report a bug'),
    "no memory of its own": RuntimeError("The CUDACachingAllocator is not initialised"),
    "a message": ValueError("CUDA out of memory"),
    "a key": KeyError("out of memory"),
    "a missing file": FileNotFoundError(errno.ENOENT, "No such file: out of memory.txt"),
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
    "an interrupt": KeyboardInterrupt("out of memory"),
    "an exit": SystemExit("out of memory"),
    "a stop": StopIteration(),
    "an assert": AssertionError("out of memory"),
}

OF_ALL = [
    *((Failure.OUT_OF_MEMORY, name, error) for name, error in OUT_OF_MEMORY.items()),
    *((Failure.AMBIGUOUS, name, error) for name, error in AMBIGUOUS.items()),
    *((Failure.OTHER, name, error) for name, error in (NEVER_RETRIED | ORDINARY).items()),
]


def again(error: BaseException, message: str | None = None) -> Any:
    """The same error, of its own, with a message of its own."""
    return type(error)(*error.args) if message is None else type(error)(message)


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(("expected", "error"), [pytest.param(e, x, id=f"{e.value}: {n}") for e, n, x in OF_ALL])
def test_messages_of_each_backend(expected: Failure, error: BaseException) -> None:
    assert classify(error) is expected


@pytest.mark.parametrize("case", [str.upper, str.lower, str.title])
@pytest.mark.parametrize(
    ("expected", "error"),
    [pytest.param(e, x, id=f"{e.value}: {n}") for e, n, x in OF_ALL if isinstance(x, RuntimeError)],
)
def test_upper_and_lower_case_are_the_same(
    expected: Failure, error: RuntimeError, case: Callable[[str], str]
) -> None:
    assert classify(again(error, case(str(error)))) is expected


@pytest.mark.parametrize("name", sorted(NEVER_RETRIED))
@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, torch.OutOfMemoryError, OSError])
def test_a_dead_context_is_never_tried_again_whatever_else_the_message_says(name: str, kind: type[Exception]) -> None:
    message = str(NEVER_RETRIED[name])
    assert classify(kind(f"CUDA out of memory. {message}")) is Failure.OTHER
    assert classify(kind(f"{message} (cublas_status_internal_error, out of memory)")) is Failure.OTHER


@given(names=st.lists(st.sampled_from(sorted(OUT_OF_MEMORY)), max_size=4), data=st.data())
def test_a_dead_context_anywhere_in_a_chain_is_never_tried_again(names: list[str], data: st.DataObject) -> None:
    dead = NEVER_RETRIED[data.draw(st.sampled_from(sorted(NEVER_RETRIED)))]
    chain = [again(OUT_OF_MEMORY[name]) for name in names]
    chain.insert(data.draw(st.integers(0, len(chain))), again(dead))
    for error, cause in pairwise(chain):
        caused(error, cause)
    assert classify(chain[0]) is Failure.OTHER


def test_an_error_is_what_caused_it() -> None:
    oom, ambiguous = OUT_OF_MEMORY["CUDA"], AMBIGUOUS["cuBLAS"]
    assert classify(caused(RuntimeError("the forward failed"), again(oom))) is Failure.OUT_OF_MEMORY
    assert classify(caused(ValueError("bad"), caused(KeyError("x"), again(oom)))) is Failure.OUT_OF_MEMORY
    assert classify(caused(again(ambiguous), again(oom))) is Failure.OUT_OF_MEMORY
    assert classify(caused(again(oom), again(ambiguous))) is Failure.OUT_OF_MEMORY
    assert classify(caused(RuntimeError("the forward failed"), again(ambiguous))) is Failure.AMBIGUOUS
    assert classify(caused(RuntimeError("the forward failed"), ValueError("out of memory"))) is Failure.OTHER


def test_an_error_that_only_came_later_is_its_own() -> None:
    """`__context__` says what was being handled, not what is the matter."""

    def handle() -> None:
        try:
            raise again(OUT_OF_MEMORY["CUDA"])
        except RuntimeError:
            raise KeyError("x")  # noqa: B904

    with pytest.raises(KeyError) as caught:
        handle()
    assert caught.value.__context__ is not None
    assert classify(caught.value) is Failure.OTHER


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_chain_that_goes_in_a_circle_ends(size: int) -> None:
    for last, expected in (
        (RuntimeError("no"), Failure.OTHER),
        (again(OUT_OF_MEMORY["CUDA"]), Failure.OUT_OF_MEMORY),
        (again(NEVER_RETRIED["ECC"]), Failure.OTHER),
    ):
        chain: list[BaseException] = [*(RuntimeError("no") for _ in range(size - 1)), last]
        for index, error in enumerate(chain):
            error.__cause__ = chain[(index + 1) % size]
        assert classify(chain[0]) is expected
        release(chain[0], "cpu")


def test_memory_errors_of_numpy() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, dtype=np.int8)
    assert type(caught.value) is not MemoryError  # a kind of numpy's own
    assert "Unable to allocate" in str(caught.value)
    assert classify(caught.value) is Failure.OUT_OF_MEMORY


def test_real_errors_that_have_nothing_to_do_with_memory() -> None:
    for work in (
        lambda: torch.zeros(2, 3) @ torch.zeros(4, 5),
        lambda: torch.zeros(2).view(3),
        lambda: nn.Embedding(2, 2)(torch.tensor([5])),
        lambda: torch.zeros(2, requires_grad=True).backward(),
        lambda: nn.Linear(2, 2).load_state_dict({}),
    ):
        with pytest.raises((RuntimeError, IndexError)) as caught:
            work()
        assert classify(caught.value) is Failure.OTHER


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts anonymous memory on Linux only")
def test_real_failures_of_the_allocator() -> None:
    code = """
import resource, torch, numpy as np
from hf_accum.device.out_of_memory import Failure, classify, release
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
for work in (
    lambda: torch.zeros(2**29),
    lambda: torch.empty(2**31, dtype=torch.int8) + 1,
    lambda: np.ones(2**28),
    lambda: bytearray(2**31),
    lambda: torch.ones(2**20, requires_grad=True).expand(600, -1).exp().sum().backward(),
):
    try:
        work()
    except Exception as error:
        print(type(error).__name__, error)
        assert classify(error) is Failure.OUT_OF_MEMORY, error
        release(error, "cpu")
    else:
        raise AssertionError("it fits")
    torch.zeros(2**26)  # 256 MiB: there is room again
print("all done")
"""
    result = run([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("all done\n")


# Letting go


class Stack(nn.Module):
    """Layers that keep one activation each; the last one fails."""

    def __init__(self, raises: Callable[[], BaseException] | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.raises = raises

    def forward(self, hidden: Tensor) -> Tensor:
        kept = []
        for layer in self.layers:
            hidden = layer(hidden).tanh()
            kept.append(hidden)
        self._end(kept)
        return hidden

    def _end(self, kept: list[Tensor]) -> None:
        total = torch.stack(kept)
        if self.raises is not None:
            raise self.raises()
        del total


def out_of_memory() -> BaseException:
    return torch.OutOfMemoryError("CUDA out of memory.")


def test_a_failed_forward_lets_go_of_its_activations_and_the_loop_goes_on() -> None:
    model = Stack(out_of_memory)
    inputs = torch.zeros(100, 64)
    count, name, sizes = 3, "kept", {"length": 7}
    with LiveBytes(held=[inputs, *model.parameters()]) as live:
        before = live.current_bytes
        try:
            model(inputs)
        except torch.OutOfMemoryError as error:
            assert live.current_bytes >= before + 8 * 100 * 64 * 4  # four layers' and all of them stacked
            release(error, "cpu")
        assert live.current_bytes == before
        model.raises = None
        loss = model(inputs).sum()
        loss.backward()
    assert (count, name, sizes, inputs.shape) == (3, "kept", {"length": 7}, (100, 64))
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("held_as", ["tensor", "list", "dictionary", "output of transformers"])
def test_a_loss_of_the_frame_that_goes_on_lets_go_of_its_graph(held_as: str) -> None:
    model = Stack(None)
    inputs = torch.zeros(100, 64)

    def backward(loss: Tensor) -> None:
        scaled = loss * 2
        fail(scaled)

    def fail(scaled: Tensor) -> None:
        raise torch.OutOfMemoryError(f"CUDA out of memory: {scaled.shape}")

    with LiveBytes(held=[inputs, *model.parameters()]) as live:
        before = live.current_bytes
        loss = model(inputs).square().sum()
        held: Any = {
            "tensor": loss,
            "list": [3, [loss]],
            "dictionary": {"loss": (loss, "x")},
            "output of transformers": SequenceClassifierOutput(loss=loss),  # type: ignore[arg-type]
        }[held_as]
        value = loss.item()
        assert live.current_bytes >= before + 4 * 100 * 64 * 4  # one activation of each layer
        try:
            backward(loss)
        except torch.OutOfMemoryError as error:
            release(error, "cpu")
        assert live.current_bytes == before + loss.nbytes  # the number itself is still there
    assert held is not None
    assert loss.item() == value
    assert loss.grad_fn is None
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()


class FailingBackward(torch.autograd.Function):
    """Its backward runs out of memory."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(f"CUDA out of memory: {gradients[0].shape}")


def test_a_failed_backward_lets_go_of_what_it_had_not_come_to() -> None:
    """Nodes that are ready wait in a queue of torch's engine, which on a CPU is the thread's own."""
    model = Stack(None)
    inputs = torch.zeros(100, 64)

    def step() -> None:
        left, right = model(inputs), model(inputs)
        (left.square().sum() + FailingBackward.apply(right).square().sum()).backward()  # type: ignore[union-attr]

    with LiveBytes(held=[inputs, *model.parameters()]) as live:
        before = live.current_bytes
        try:
            step()
        except torch.OutOfMemoryError as error:
            release(error, "cpu")
        left = live.current_bytes - before
    assert left == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def test_a_view_of_the_frame_that_goes_on_lets_go_of_its_graph() -> None:
    model = Stack(None)

    def fail(logits: Tensor) -> None:
        raise torch.OutOfMemoryError(f"CUDA out of memory: {logits.shape}")

    inputs = torch.zeros(100, 64)
    with LiveBytes(held=[inputs, *model.parameters()]) as live:
        before = live.current_bytes
        logits = model(inputs)[:, 0]  # of the first token, as many heads have it
        try:
            fail(logits)
        except torch.OutOfMemoryError as error:
            release(error, "cpu")
        assert live.current_bytes == before + 100 * 64 * 4  # what it is a view of; of four layers one
    assert logits.shape == (100,)


def test_views_of_a_split_in_the_frame_that_goes_on_are_no_error() -> None:
    def fail(part: Tensor) -> None:
        raise torch.OutOfMemoryError(f"CUDA out of memory: {part.shape}")

    query, key, value = Stack(None)(torch.zeros(3, 6, 64)).split(2, dim=1)  # as GPT-2's layers have it
    query, key = query.transpose(0, 1), key.transpose(0, 1)
    try:
        fail(query)
    except torch.OutOfMemoryError as error:
        release(error, "cpu")
    assert query.shape == key.shape == (2, 3, 64)
    assert value.shape == (3, 2, 64)


def test_what_the_frame_that_goes_on_trains_is_not_touched() -> None:
    model = Stack(out_of_memory)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    weight, plain = parameters[0], torch.arange(3)
    try:
        model(torch.zeros(2, 64))
    except torch.OutOfMemoryError as error:
        release(error, "cpu")
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight.grad is not None
    assert bool((weight.grad == 1).all())
    assert plain.tolist() == [0, 1, 2]


def test_causes_and_contexts_let_go_as_well() -> None:
    class Big:
        pass

    alive: list[weakref.ref[Big]] = []

    def hold(then: Callable[[], Any]) -> None:
        big = Big()
        alive.append(weakref.ref(big))
        then()

    def first() -> None:
        raise out_of_memory()

    def wrapped() -> None:
        try:
            hold(first)
        except torch.OutOfMemoryError as error:
            raise RuntimeError("the layer failed") from error

    def twice() -> None:
        try:
            hold(wrapped)
        except RuntimeError:
            hold(first)

    try:
        hold(twice)
    except torch.OutOfMemoryError as error:
        assert [one() is None for one in alive] == [False] * 4
        release(error, "cpu")
        assert [one() is None for one in alive] == [True] * 4
        assert error.__traceback__ is None  # noqa: PT017


def test_a_module_keeps_its_globals() -> None:
    """A script whose loop stands at the top: its frame's variables are the module's own."""
    module = types.ModuleType("script")
    module.__dict__.update(torch=torch, release=release, LiveBytes=LiveBytes, Stack=Stack, rounds=[])
    code = """
model, count, inputs = Stack(None), 3, torch.zeros(100, 64)
def fail(x):
    inner = x.exp()
    raise torch.OutOfMemoryError("out of memory")
with LiveBytes(held=[inputs, *model.parameters()]) as live:
    before = live.current_bytes
    for attempt in range(2):
        loss = model(inputs).sum()
        try:
            fail(loss)
        except torch.OutOfMemoryError as error:
            release(error, "cpu")
        rounds.append(live.current_bytes - before)
"""
    exec(builtins.compile(code, "script.py", "exec"), module.__dict__)
    names = vars(module)
    assert names["rounds"] == [4, 4]  # bytes of one loss
    assert names["count"] == 3
    assert isinstance(names["model"], Stack)
    assert {"fail", "attempt", "loss", "torch", "__builtins__"} <= set(names)


def test_a_class_body_keeps_its_names() -> None:
    class Body:
        size = 3
        try:
            Stack(out_of_memory)(torch.zeros(2, 64))
        except torch.OutOfMemoryError as error:
            release(error, "cpu")
        twice = size * 2

    assert (Body.size, Body.twice) == (3, 6)


def test_an_error_without_a_traceback_is_fine() -> None:
    release(RuntimeError("out of memory"), torch.device("cpu"))
    gc.collect()
