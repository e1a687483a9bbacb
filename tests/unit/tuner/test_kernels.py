"""CUDA's kernels in a trace: which one is taken, what each keeps, counted by hand; and nothing of it stays behind."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_cases import DIM, HEADS, LENGTH, NUMBER, ROWS, heads
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from traced_cases import SIZES, Case, make_optimizer, make_workload, traces_of
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    masking_utils,
)
from workload_cases import of_sizes

from hf_accum.accumulation.example import Lengths
from hf_accum.device.live_bytes import LiveBytes
from hf_accum.models.attention import share_mask
from hf_accum.models.lora import checkpoint_activations
from hf_accum.tasks.tokenization import made_up_inputs
from hf_accum.tuner.kernels import (
    attention_backend,
    cuda_kernels,
    is_card_traced,
    workspace_bytes,
)
from hf_accum.tuner.prediction import predict
from hf_accum.tuner.tracing import Trace, Tracer
from hf_accum.tuner.workload import Workload

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
AMPERE, TURING = (8, 6), (7, 5)

# Which kernel


@pytest.mark.parametrize(
    ("dtype", "capability", "head_dim", "more", "backend"),
    [
        (BF16, (8, 6), 64, {}, "flash"),
        (FP16, (8, 0), 64, {"dropout": 0.1}, "flash"),
        (BF16, (9, 0), 256, {}, "flash"),
        (BF16, (12, 1), 64, {}, "flash"),
        (BF16, (8, 6), 60, {}, "flash"),  # padded to 64
        (BF16, (8, 6), 64, {"is_grouped": True}, "flash"),
        (BF16, (8, 6), 64, {"has_mask": True}, "efficient"),
        (BF16, (8, 6), 64, {"has_mask": True, "dropout": 0.1}, "efficient"),
        (BF16, (8, 6), 264, {}, "efficient"),
        (BF16, (8, 6), 64, {"value_dim": 128}, "efficient"),
        (FP32, (8, 6), 64, {}, "efficient"),
        (FP32, (6, 1), 63, {}, "efficient"),
        (FP32, (7, 5), 63, {}, "efficient"),
        (FP16, (7, 5), 64, {}, "efficient"),
        (FP16, (6, 1), 60, {}, "efficient"),
        # Training with large heads on cards with less shared memory
        (BF16, (8, 0), 256, {"dropout": 0.1}, "flash"),
        (BF16, (8, 6), 192, {"dropout": 0.1}, "flash"),
        (BF16, (8, 9), 224, {}, "efficient"),
        (BF16, (8, 9), 256, {}, "flash"),
        (BF16, (12, 0), 256, {"dropout": 0.1}, "efficient"),
        (BF16, (8, 6), 224, {"trains": False}, "flash"),
        # What no kernel takes
        (BF16, (7, 5), 64, {}, "math"),
        (BF16, (7, 5), 64, {"has_mask": True}, "math"),
        (BF16, (8, 6), 60, {"has_mask": True}, "math"),
        (FP16, (7, 5), 60, {}, "math"),
        (FP32, (8, 6), 62, {}, "math"),
        (FP32, (8, 6), 64, {"is_grouped": True}, "math"),
        (BF16, (8, 6), 64, {"is_regular": False}, "math"),
        (torch.float64, (8, 6), 64, {}, "math"),
        (FP32, (3, 7), 64, {}, "math"),
        (BF16, (13, 0), 64, {}, "math"),
    ],
)
def test_backend(dtype: torch.dtype, capability: Any, head_dim: int, more: Any, backend: str) -> None:
    assert attention_backend(dtype, capability, head_dim, **more) == backend


def test_workspaces() -> None:
    assert workspace_bytes((7, 5)) == workspace_bytes((8, 9)) == 2 * (8_519_680 + 2**20)
    assert workspace_bytes((9, 0)) == workspace_bytes((12, 0)) == 2 * 33 * 2**20


# What one attention keeps


@contextmanager
def counted(*tensors: Tensor, capability: tuple[int, int] = AMPERE) -> Iterator[LiveBytes]:
    with LiveBytes(held=tensors) as live, cuda_kernels(capability):
        live.leave_out(tensors)
        yield live


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_flash_keeps_its_output_a_number_a_row_and_the_random_state(dropout: float) -> None:
    with FakeTensorMode():
        query, key, value = heads(BF16), heads(BF16, 2), heads(BF16, 2)
        with counted(query, key, value) as live:
            output = F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=True, enable_gqa=True
            )
            assert live.current_bytes == ROWS * DIM * 2 + ROWS * 4 + 24
            output.sum().backward()
        assert [t.grad is not None and t.grad.shape for t in (query, key, value)] == [
            t.shape for t in (query, key, value)
        ]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_the_efficient_kernel_keeps_no_scores(dtype: torch.dtype, dropout: float) -> None:
    with FakeTensorMode():
        query, key, value = heads(dtype), heads(dtype), heads(dtype)
        mask = torch.zeros(NUMBER, 1, 1, LENGTH, dtype=dtype)
        with counted(query, key, value, mask) as live:
            output = F.scaled_dot_product_attention(query, key, value, mask, dropout)
            assert live.current_bytes == ROWS * DIM * dtype.itemsize + ROWS * 4 + 16
            assert live.peak_bytes == live.current_bytes
            output.sum().backward()
        assert query.grad is not None
        assert query.grad.shape == query.shape


def test_a_mask_whose_rows_are_not_aligned_is_copied() -> None:
    with FakeTensorMode():
        query, key, value = (heads(BF16, length=60) for _ in range(3))
        mask = torch.zeros(NUMBER, 1, 1, 60, dtype=BF16)
        with counted(query, key, value, mask) as live:
            output = F.scaled_dot_product_attention(query, key, value, mask)
            rows = NUMBER * HEADS * 60
            numbers = NUMBER * HEADS * 64 * 4  # of rows, to a multiple of 32
            assert live.current_bytes == rows * DIM * 2 + numbers + NUMBER * 64 * 2 + 16
        assert output.shape == query.shape


def test_a_mask_of_bools_becomes_one_of_numbers() -> None:
    with FakeTensorMode():
        query, key, value = heads(BF16), heads(BF16), heads(BF16)
        mask = torch.ones(NUMBER, 1, LENGTH, LENGTH, dtype=torch.bool)
        with counted(query, key, value, mask) as live:
            output = F.scaled_dot_product_attention(query, key, value, mask)
            assert live.current_bytes == ROWS * DIM * 2 + ROWS * 4 + 16 + NUMBER * LENGTH * LENGTH * 2
        assert output.shape == query.shape


def test_heads_that_are_no_multiple_of_8_are_padded() -> None:
    with FakeTensorMode():
        query, key, value = (heads(BF16, dim=28) for _ in range(3))
        with counted(query, key, value) as live:
            output = F.scaled_dot_product_attention(query, key, value)
            assert live.current_bytes == 4 * ROWS * 32 * 2 + ROWS * 4 + 24
            output.sum().backward()
        assert output.shape == query.shape
        assert query.grad is not None
        assert query.grad.shape == query.shape


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_without_a_kernel_scores_are_kept_in_float32_with_a_byte_for_dropout(dropout: float) -> None:
    with FakeTensorMode():
        query, key, value = heads(BF16), heads(BF16), heads(BF16)
        with counted(query, key, value, capability=TURING) as live:
            output = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
            scores, inputs = ROWS * LENGTH, ROWS * DIM
            kept = 3 * inputs * 4 + inputs * 2 + scores * 4  # softmax's output, which matmul reads without dropout
            assert live.current_bytes == kept + (scores * (4 + 1) if dropout else 0)
            output.sum().backward()
        assert query.grad is not None
        assert query.grad.dtype == BF16


def test_plain_attention_computes_what_torch_does() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 6, 8) for heads in (4, 2, 2))
    how: dict[str, Any] = {"is_causal": True, "scale": 0.3, "enable_gqa": True}
    expected = F.scaled_dot_product_attention(query, key, value, **how)
    with cuda_kernels((3, 7)):
        found = F.scaled_dot_product_attention(query, key, value, **how)
    torch.testing.assert_close(found, expected)


def test_autocast_casts_queries_keys_values_and_the_mask() -> None:
    with FakeTensorMode(), torch.autocast("cpu", BF16):
        query, key, value = heads(FP32), heads(FP32), heads(FP32)
        mask = torch.zeros(NUMBER, 1, 1, LENGTH)
        with counted(query, key, value, mask) as live:
            output = F.scaled_dot_product_attention(query, key, value, mask)
            assert live.current_bytes == 4 * ROWS * DIM * 2 + ROWS * 4 + 16 + NUMBER * LENGTH * 2
        assert output.dtype == BF16


# Temporaries of the backward


# Dropout, and casts of autocast


def test_a_mask_of_dropout_is_a_byte_an_element() -> None:
    with FakeTensorMode():
        x = torch.empty(64, 64, requires_grad=True)
        with counted(x) as live:
            y = nn.Dropout(0.1)(x)
            assert live.current_bytes == 64 * 64 * (4 + 1)
            z = torch.dropout(y, 0.1, train=True)
            assert live.current_bytes == 2 * 64 * 64 * (4 + 1)
            assert F.dropout(z, 0.1, training=False) is z
            z.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    "function", [nn.LayerNorm(64), lambda x: x.softmax(-1), lambda x: x**3, lambda x: torch.pow(x, 3), torch.sum]
)
def test_autocast_on_a_card_computes_these_in_float32(function: Any) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", BF16):
        x = torch.empty(4, 64, dtype=BF16)
        with cuda_kernels(AMPERE):
            assert function(x).dtype == FP32
            assert F.gelu(x).dtype == BF16


def test_without_autocast_nothing_is_cast() -> None:
    with FakeTensorMode(), cuda_kernels(AMPERE):
        assert torch.empty(4, 64, dtype=BF16).softmax(-1).dtype == BF16


# Models

WIDTH, NUM_LAYERS, NUM_HEADS = 32, 2, 2


def bert(dropout: float, precision: str = "bf16") -> Workload:
    sizes: dict[str, Any] = SIZES | {"max_position_embeddings": 1024, "pad_token_id": 0}
    config = BertConfig(
        **sizes,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    assert share_mask(model)
    return workload_of(model, precision)


def llama(precision: str = "bf16") -> Workload:
    more = {"max_position_embeddings": 1024, "pad_token_id": 0, "num_attention_heads": 4, "num_key_value_heads": 1}
    sizes: dict[str, Any] = SIZES | more
    with torch.device("meta"):
        model = LlamaForSequenceClassification(LlamaConfig(**sizes, use_cache=False))
    return workload_of(model, precision, has_mask=False)


def workload_of(model: nn.Module, precision: str, *, has_mask: bool = True) -> Workload:
    def logits(model: nn.Module, number: int, length: int, device: torch.device) -> Tensor:
        inputs = made_up_inputs(model, number, length, device)
        return model(**inputs if has_mask else {"input_ids": inputs["input_ids"]}).logits

    def loss(*arguments: Any) -> Tensor:
        return logits(*arguments).float().sum()

    return of_sizes(model.train(), make_optimizer, loss, logits, 1024, Lengths(vary=True), precision)


def traced(work: Workload, capability: tuple[int, int] | None, *lengths: int) -> list[Trace]:
    return traces_of(Tracer(work, capability), [(2, length) for length in lengths])


def kept(trace: Trace) -> int:
    return trace.training[trace.forward_end]


@pytest.mark.parametrize("work", [bert(0.1), bert(0.0), bert(0.1, "no"), llama()], ids=["0.1", "0", "fp32", "llama"])
def test_bytes_grow_linearly_with_the_length(work: Workload) -> None:
    for count in (kept, lambda trace: max(trace.training), lambda trace: max(trace.evaluation)):
        first, second, third = (count(trace) for trace in traced(work, AMPERE, 256, 512, 768))
        assert third - second == second - first


@pytest.mark.parametrize(
    ("work", "capability"), [(bert(0.1), TURING), (bert(0.0), TURING), (llama("no"), AMPERE), (bert(0.1), None)]
)
def test_where_there_is_no_kernel_scores_are_kept(work: Workload, capability: Any) -> None:
    first, second, third = (kept(trace) for trace in traced(work, capability, 256, 512, 768))
    scores = 2 * NUM_LAYERS * NUM_HEADS * 2 * 256**2  # what the second difference has of each byte of a score
    assert third - second - (second - first) >= 2 * scores


def test_dropout_costs_a_byte_for_each_element_of_hidden_states() -> None:
    [with_dropout], [without] = traced(bert(0.1), AMPERE, 512), traced(bert(0.0), AMPERE, 512)
    hidden = 2 * 512 * WIDTH
    masks = (1 + 2 * NUM_LAYERS) * hidden + 2 * WIDTH  # of the embeddings, two a layer, and of the pooled output
    pooled = 2 * WIDTH * 2  # its dropout's output, which the head reads
    assert 0 < kept(with_dropout) - kept(without) - masks <= pooled


def test_a_single_text_is_padded_on_a_card() -> None:
    model, cpu = nn.Linear(1, 1), torch.device("cpu")
    assert "attention_mask" not in made_up_inputs(model, 1, 8, cpu)
    with cuda_kernels(AMPERE):
        assert is_card_traced()
        assert made_up_inputs(model, 1, 8, cpu)["attention_mask"].shape == (1, 8)
    assert not is_card_traced()


def test_a_prediction_for_a_card() -> None:
    work = bert(0.1)
    on_card = predict(work, capability=AMPERE)
    [trace] = traces_of(Tracer(work, AMPERE), [(5, 1024)])
    assert on_card.needed_bytes(5, 1024) == max(on_card.fixed.floor, *trace.training)
    assert on_card.needed_bytes(5, 1024) < predict(work).needed_bytes(5, 1024)


def test_checkpointed_layers_take_the_kernels_again_in_the_backward() -> None:
    work = bert(0.1)
    assert isinstance(work.model, PreTrainedModel)
    checkpoint_activations(work.model)
    first, second, third = (max(trace.training) for trace in traced(work, AMPERE, 256, 512, 768))
    assert third - second == second - first


def test_grouped_keys_are_not_repeated_where_there_is_no_mask() -> None:
    seen = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "scaled_dot_product" in str(func) and "backward" not in str(func):
                seen.append((str(func), args[0].shape[1], args[1].shape[1]))
            return func(*args, **(kwargs or {}))

    work = llama()

    def summed_loss(model: nn.Module, batch: Any) -> Tensor:
        with Seen():
            return work.summed_loss(model, batch)

    traced(replace(work, summed_loss=summed_loss), AMPERE, 32)
    assert seen == [("aten._scaled_dot_product_flash_attention.default", 4, 1)] * NUM_LAYERS


# What is left behind


def test_nothing_is_changed_afterwards() -> None:
    torch.manual_seed(0)
    work = make_workload(Case("bert"))
    model = work.model.eval()
    ids = torch.arange(16).view(2, 8)

    def functions() -> tuple[object, ...]:
        of_torch = (F.scaled_dot_product_attention, F.dropout, torch.dropout, F.layer_norm)
        return (*of_torch, masking_utils.find_packed_sequence_indices)

    as_they_were = functions()
    before = model(ids).logits
    traces_of(Tracer(work, AMPERE), [(2, 8)])
    with pytest.raises(ZeroDivisionError), cuda_kernels(AMPERE):
        raise ZeroDivisionError
    assert functions() == as_they_were
    assert not is_card_traced()
    assert torch.equal(model(ids).logits, before)
    assert F.dropout(torch.ones(3, requires_grad=True), 0.1).grad_fn.name() != "NativeDropoutBackward0"  # type: ignore[union-attr]


@pytest.mark.slow
def test_traces_in_several_threads_are_the_same() -> None:
    def trace(number: int) -> list[int]:
        capability = AMPERE if number % 2 else None
        return [kept(t) for t in traces_of(Tracer(make_workload(Case("bert")), capability), [(1, 8), (2, 32)])]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(trace, range(8)))
    assert results[0] != results[1]
    assert all(result == results[number % 2] for number, result in enumerate(results))
