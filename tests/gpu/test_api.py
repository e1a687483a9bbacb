"""What this project calls of torch, transformers and bitsandbytes on a device is there, in the versions installed."""

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_report import Report
from torch import nn

NAMES = (
    "accelerator.current_accelerator",
    "accelerator.is_available",
    "accelerator.synchronize",
    "accelerator.memory.empty_cache",
    "accelerator.memory.get_memory_info",
    "accelerator.memory.max_memory_allocated",
    "accelerator.memory.max_memory_reserved",
    "accelerator.memory.memory_allocated",
    "accelerator.memory.memory_reserved",
    "accelerator.memory.memory_stats",
    "accelerator.memory.reset_peak_memory_stats",
    "cuda.memory._record_memory_history",
    "cuda.memory_snapshot",
    "cuda.set_per_process_memory_fraction",
    "cuda.set_sync_debug_mode",
    "amp.GradScaler",
    "nn.attention.SDPBackend",
    "nn.attention.sdpa_kernel",
    "Event",
    "Stream",
    "get_device_module",
)


def test_the_names_are_there() -> None:
    import torch.nn.attention

    missing = []
    for name in NAMES:
        try:
            attrgetter(name)(torch)
        except AttributeError:
            missing.append(name)
    assert missing == []


def test_what_transformers_is_asked_for_is_there() -> None:
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    assert BitsAndBytesConfig(load_in_4bit=True).load_in_4bit
    assert callable(replace_with_bnb_linear)


def test_memory_is_counted_alike_by_both_names(gpu: torch.device, findings: Report) -> None:
    memory = torch.accelerator.memory
    kept = torch.zeros(64 * 2**20, dtype=torch.uint8, device=gpu)
    counts = {
        "allocated": (memory.memory_allocated(gpu), torch.cuda.memory_allocated(gpu)),
        "reserved": (memory.memory_reserved(gpu), torch.cuda.memory_reserved(gpu)),
        "most allocated": (memory.max_memory_allocated(gpu), torch.cuda.max_memory_allocated(gpu)),
        "most reserved": (memory.max_memory_reserved(gpu), torch.cuda.max_memory_reserved(gpu)),
        "in all": (memory.get_memory_info(gpu)[1], torch.cuda.get_device_properties(gpu).total_memory),
    }
    for what, (ours, theirs) in counts.items():
        findings.add("counts", what=what, accelerator_bytes=ours, cuda_bytes=theirs)
    assert counts["allocated"][0] == kept.nbytes
    assert all(ours == theirs for what, (ours, theirs) in counts.items() if what != "in all")
    assert {"num_alloc_retries", "num_ooms"} <= set(memory.memory_stats(gpu))


def test_the_allocator_tells_its_segments_and_its_history(gpu: torch.device) -> None:
    torch.cuda.memory._record_memory_history(max_entries=1000)
    try:
        kept = torch.zeros(3 * 2**20, dtype=torch.uint8, device=gpu)
        snapshot: Any = torch.cuda.memory._snapshot(gpu)
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    trace = snapshot["device_traces"][gpu.index]
    assert any(entry["action"] == "alloc" and entry["size"] == kept.nbytes for entry in trace)
    segments = [segment for segment in torch.cuda.memory_snapshot() if segment["device"] == gpu.index]
    assert sum(segment["total_size"] for segment in segments) == torch.cuda.memory_reserved(gpu)
    sizes = [block["size"] for segment in segments for block in segment["blocks"]]
    assert kept.nbytes in sizes


def test_the_fraction_of_a_process_is_a_limit(gpu: torch.device) -> None:
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction(256 * 2**20 / total, gpu)
    torch.zeros(128 * 2**20, dtype=torch.uint8, device=gpu)
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(512 * 2**20, dtype=torch.uint8, device=gpu)


def test_which_attention_runs_for_what(gpu: torch.device, findings: Report) -> None:
    """Forward and backward: the plan goes by this. The mathematical one runs for everything."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for masked in (False, True):
            for dropout in (0.0, 0.1):
                runs = {}
                for backend in backends:
                    q = torch.randn(2, 4, 128, 64, device=gpu, dtype=dtype, requires_grad=True)
                    mask = torch.zeros(2, 1, 128, 128, device=gpu, dtype=dtype) if masked else None
                    try:
                        with sdpa_kernel(backend):
                            attend = nn.functional.scaled_dot_product_attention
                            attend(q, q, q, attn_mask=mask, dropout_p=dropout).sum().backward()
                        runs[backend.name] = True
                    except RuntimeError:
                        runs[backend.name] = False
                findings.add("attention", dtype=str(dtype), mask=masked, dropout=dropout, **runs)
                assert runs["MATH"]


def test_a_scaler_skips_what_overflows(gpu: torch.device) -> None:
    weight = nn.Parameter(torch.ones(8, device=gpu))
    optimizer = torch.optim.AdamW([weight], fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    scaler.scale(weight.sum() * torch.inf).backward()
    scaler.unscale_(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_optimizers_in_8_bits_make_a_step(gpu: torch.device, findings: Report, name: Any) -> None:
    pytest.importorskip("bitsandbytes")
    from hf_accum.config.optimization import OptimizationFlags
    from hf_accum.models.optimizer import build_optimizer, check_optimizer

    check_optimizer(name, gpu)
    model = nn.Linear(1024, 1024, bias=False, device=gpu)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, OptimizationFlags(optimizer=name, learning_rate=1e-2))
    model(torch.randn(4, 1024, device=gpu)).square().sum().backward()
    held = torch.cuda.memory_allocated(gpu)
    optimizer.step()
    torch.cuda.synchronize(gpu)
    state = torch.cuda.memory_allocated(gpu) - held
    findings.add("optimizers", optimizer=name, weights=before.numel(), state_bytes=state)
    assert not torch.equal(model.weight, before)
    assert model.weight.isfinite().all()
    assert state <= 2.1 * before.numel()


def test_four_bit_layers_multiply_forward_and_backward(gpu: torch.device, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from gpu_cases import best_precision, make_workload, materialise

    precision = best_precision(gpu)
    work = make_workload(tmp_path, "tiny Llama", precision, quantization="nf4", max_length=32)
    materialise(work.model, gpu)
    work.model.train()
    work.forward_backward(2, 32, gpu)
    gradients = [p.grad for p in work.model.parameters() if p.requires_grad]
    assert gradients
    assert all(g is not None and g.isfinite().all() for g in gradients)
