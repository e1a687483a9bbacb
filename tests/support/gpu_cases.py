"""Models of real sizes with random weights, made on a device without a file of them; texts for them; a recipe's loop.

All runs on a CPU too, with tiny sizes.
"""

import math
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin
from tiny import WORDS, make_tokenizer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hf_accum import accumulate
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.losses import CrossEntropy
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.device.live_bytes import tensors_of
from hf_accum.models.optimizer import build_optimizer
from hf_accum.models.trainable import without_weights
from hf_accum.recipe import ModelSpec, NonFiniteCheck, Pipeline, Source, WindowStream, ranks_of
from hf_accum.tasks.causal_lm.data import WholeTexts
from hf_accum.tasks.causal_lm.task import CausalTexts
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy
from hf_accum.tasks.text_classification.task import TextClassification
from hf_accum.tuner.kernels import Capability
from hf_accum.tuner.prediction import predict_from
from hf_accum.tuner.reserved import ReservedBytes
from hf_accum.tuner.tracing import Tracer
from hf_accum.tuner.workload import Workload
from recipes import clinical_classification, medical_lm

LABELS = ("a", "b", "c")

_TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
_ONE_BILLION = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
_ONE_HUNDRED_MILLION = _ONE_BILLION | {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
}
MODELS: dict[str, PreTrainedConfig] = {
    "BERT-base": AutoConfig.for_model("bert"),
    "ModernBERT-base": AutoConfig.for_model("modernbert"),
    "Llama 1 B": AutoConfig.for_model("llama", **_ONE_BILLION),
    "Llama 100 M": AutoConfig.for_model("llama", **_ONE_HUNDRED_MILLION),
    "tiny BERT": AutoConfig.for_model("bert", **_TINY),
    "tiny ModernBERT": AutoConfig.for_model("modernbert", **_TINY, cls_token_id=2, sep_token_id=3),
    "tiny Llama": AutoConfig.for_model("llama", **_TINY, num_key_value_heads=1),
}


def best_precision(device: torch.device) -> str:
    """What accelerate's mixed precision is best on a device."""
    if device.type == "cpu":
        return "bf16"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def save_config(folder: Path, model: str) -> str:
    """A model that has its config alone, as a `--model` flag has it."""
    MODELS[model].save_pretrained(folder)
    return str(folder)


def make_workload(folder: Path, model: str, precision: str = "no", **flags: Any) -> Workload:
    """What a recipe trains with a model, without weights: classes of texts, or of a Llama the next token.

    `flags` are the recipe's; `rank` is that of the adapters.
    """
    rank = flags.pop("rank", 16)
    name = save_config(folder, model)
    how: dict[str, Any] = {"model": name, "lora": LoraConfig(rank=rank), **flags}
    if "Llama" in model:
        return medical_lm.workload(medical_lm.MedicalLmConfig(**how), precision)
    config = clinical_classification.ClinicalClassificationConfig(labels=list(LABELS), **how)
    return clinical_classification.workload(config, precision)


def predicted(
    folder: Path,
    model: str,
    precision: str,
    capability: Capability,
    flags: dict[str, Any],
    sizes: Sequence[tuple[int, int]],
) -> dict[tuple[int, int], tuple[int, int]]:
    """Of micro-batches of a model without weights: bytes of tensors, and what a card's allocator holds; for a process
    of its own.
    """
    tracer = Tracer(make_workload(folder, model, precision, **flags), capability)
    with tracer.started() as trace:
        prediction = predict_from(tracer, trace)
        reserved = ReservedBytes(tracer, trace)
        return {size: (prediction.needed_bytes(*size), reserved.over([[size]])[-1]) for size in sizes}


def materialise(model: nn.Module, device: torch.device, seed: int = 0) -> None:
    """Give a model without weights random ones, drawn on the device, in the types that it has; 4-bit ones too."""
    generator = torch.Generator(device).manual_seed(seed)
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if tensor not in made:
                        made[tensor] = _made(module, name, tensor, device, generator)
                    tensors[name] = made[tensor]  # type: ignore[assignment] (parameters among parameters)


def _made(module: nn.Module, name: str, tensor: Tensor, device: torch.device, generator: torch.Generator) -> Tensor:
    def drawn(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * 0.02).to(dtype)

    state: Any = getattr(tensor, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import quantize_4bit
        from bitsandbytes.nn import Params4bit

        blocksize: int = getattr(tensor, "blocksize")  # noqa: B009 (no attribute of tensors)
        packed, new_state = quantize_4bit(
            drawn(state.shape, state.dtype), blocksize=blocksize, compress_statistics=True, quant_type="nf4"
        )
        make: Any = Params4bit
        return make(packed, quant_state=new_state, blocksize=blocksize, bnb_quantized=True, module=module)
    shape, dtype = tensor.shape, tensor.dtype
    if not dtype.is_floating_point:
        values = torch.zeros(shape, dtype=dtype, device=device)
    elif tensor.ndim >= 2:
        values = drawn(shape, dtype)
    elif isinstance(tensor, nn.Parameter):
        values = torch.full(shape, float(name == "weight"), dtype=dtype, device=device)
    else:  # the frequencies of rotary positions
        values = torch.logspace(0, -4, shape.numel(), dtype=dtype, device=device).reshape(shape)
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def make_rows(num_rows: int, longest: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts of very uneven length, up to `longest` tokens, and a label that their words tell."""
    draw = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        label = draw.randrange(len(LABELS))
        num_words = min(longest - 2, max(2, round(draw.lognormvariate(math.log(longest / 6), 0.8))))
        words = draw.choices(WORDS[label * 10 : label * 10 + 10], k=num_words)
        rows.append({"text": " ".join(words), "label": LABELS[label]})
    return rows


def make_task(longest: int) -> TextClassification:
    """Classes of such texts."""
    column = LabelColumn("label", "single_label_classification", LABELS, "|")
    return TextClassification("text", column, CrossEntropy(), make_tokenizer(), longest)


def source_of(rows: Sequence[Any]) -> Source:
    """Rows in memory as a dataset of one shard."""
    return Source(("memory",), lambda _, start: enumerate(rows[start:], start), {})


def reset_accelerate() -> None:
    """Forget what accelerate keeps for each process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@contextmanager
def accelerator_on(device: torch.device, precision: str = "no") -> Iterator[Accelerator]:
    """A fresh one; what accelerate keeps for each process is reset before and after."""
    reset_accelerate()
    try:
        yield Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        )
    finally:
        reset_accelerate()


@dataclass
class Job:
    """Texts, and a model that learns from them: what a recipe has around its loop."""

    work: Workload
    task: TextClassification | CausalTexts
    prepare: Callable[[Any], Any]
    rows: list[dict[str, str]]
    device: torch.device
    folder: Path
    config: RecipeConfig

    def windows(
        self, accelerator: Accelerator, cutter: Cutter | int, window: int, num_windows: int
    ) -> Iterator[WindowExecution]:
        """Train on so many windows; each is given out once its step is made. Once for each job."""
        model = accelerator.prepare_model(self.work.model, evaluation_mode=True)
        optimizer = accelerator.prepare_optimizer(build_optimizer(self.work.model, self.config))
        ranks = ranks_of(accelerator)
        nonfinite = NonFiniteCheck(ranks, self.folder, print, max_skips=0, scaler=accelerator.scaler)
        stream = WindowStream(
            source_of(self.rows),
            self.prepare,
            self.task.encode,
            ranks=ranks,
            effective_batch_size=window,
            seed=0,
            shuffle_block_size=256,
            num_epochs=math.ceil(num_windows * window / len(self.rows)) + 1,
        )
        pipeline = Pipeline(stream, cutter, self.task.collate, self.device)
        for number, execution in enumerate(pipeline, start=1):
            for micro_batch in execution.micro_batches(pipeline.cutter):
                with accumulate(accelerator, model, micro_batch):
                    loss = self.task.summed_loss(model, micro_batch.batch)
                    accelerator.backward(micro_batch.scaled(loss))
            norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
            if nonfinite.accepts(execution, norm):
                optimizer.step()
            optimizer.zero_grad()
            yield execution
            if number == num_windows:
                return


def make_job(
    folder: Path, model: str, device: torch.device, precision: str, longest: int, num_rows: int, **flags: Any
) -> Job:
    """A classifier on the device, in train mode, with texts of up to `longest` tokens."""
    rank = flags.pop("rank", 16)
    how: dict[str, Any] = {"max_length": longest, "learning_rate": 1e-3, "dropout": 0.0, **flags}
    work = make_workload(folder, model, precision, rank=rank, **how)
    materialise(work.model, device)
    work.model.train()
    config = clinical_classification.ClinicalClassificationConfig(lora=LoraConfig(rank=rank), **how)
    task = make_task(longest)
    return Job(work, task, task.prepare, make_rows(num_rows, longest), device, folder, config)


def make_language_job(
    folder: Path, model: str, device: torch.device, precision: str, longest: int, num_rows: int, **flags: Any
) -> Job:
    """The same of a causal language model, which learns to continue the texts."""
    how: dict[str, Any] = {"max_length": longest, "learning_rate": 1e-3, "dropout": 0.0, **flags}
    work = make_workload(folder, model, precision, **how)
    materialise(work.model, device)
    work.model.train()
    tokenizer = make_tokenizer()
    task = CausalTexts(tokenizer, ChunkedCrossEntropy(None, precision), longest)
    reader = WholeTexts(tokenizer, "text", longest)
    rows = make_rows(num_rows, longest - 2)  # which are a passage each
    return Job(
        work, task, lambda row: reader.read(row)[1][0], rows, device, folder, medical_lm.MedicalLmConfig(**how)
    )


def plain_language_model(folder: Path, model: str, device: torch.device, precision: str) -> nn.Module:
    """A causal model with the same adapters that computes logits, for loops that want them."""
    config = medical_lm.MedicalLmConfig(model=save_config(folder, model), dropout=0.0)
    spec = ModelSpec(AutoModelForCausalLM, str(folder), "CAUSAL_LM")
    made = without_weights(spec, config, precision)
    materialise(made, device)
    return made.train()


def step_of(work: Workload, optimizer: Optimizer, num_examples: int, length: int, device: torch.device) -> None:
    """A window of two equal micro-batches, and its step."""
    for _ in range(2):
        work.forward_backward(num_examples, length, device)
    optimizer.step()
    optimizer.zero_grad()


def measured_peaks(
    work: Workload, optimizer: Optimizer, num_examples: int, length: int, device: torch.device
) -> tuple[int, int]:
    """Peak bytes allocated and reserved in a window and its step, the optimizer's state there before.

    On a CPU: those of tensors, twice.
    """
    step_of(work, optimizer, num_examples, length, device)  # which makes the state, and loads what is used once
    if device.type == "cpu":
        import workload_cases

        state = [t for values in optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
        with workload_cases.Counter([*tensors_of(work.model), *state]) as counter:
            step_of(work, optimizer, num_examples, length, device)
        return counter.peak, counter.peak
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    step_of(work, optimizer, num_examples, length, device)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


def most_that_fit(fits: Callable[[int], bool], found: int) -> int:
    """By trying, from what was found, one by one; no further up than by a quarter, at least 4."""
    number = found
    while number < found + max(4, found // 4) and fits(number + 1):
        number += 1
    if number == found:
        while number and not fits(number):
            number -= 1
    return number


def allocated_bytes(device: torch.device) -> int:
    """Now, by the allocator; of a CPU nothing is known."""
    if device.type == "cpu":
        return 0
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device)


def num_alloc_retries(device: torch.device) -> int:
    """So far; on a CPU there are none."""
    return 0 if device.type == "cpu" else torch.cuda.memory_stats(device)["num_alloc_retries"]


@dataclass(frozen=True)
class Waits:
    """How often the host waited for the device in some windows, and where most often."""

    num_waits: int
    num_micro_batches: int
    where: dict[str, int]


def count_waits(job: Job, accelerator: Accelerator, cutter: Cutter | int, window: int, num_windows: int) -> Waits:
    """In the second half of so many windows; on a CPU there is none."""
    warm_up = num_windows // 2
    num_micro_batches = 0
    mode = torch.cuda.set_sync_debug_mode if job.device.type == "cuda" else (lambda mode: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for number, execution in enumerate(job.windows(accelerator, cutter, window, num_windows), start=1):
                if number == warm_up:
                    mode("warn")
                    caught.clear()
                elif number > warm_up:
                    num_micro_batches += execution.num_micro_batches
        finally:
            mode("default")
    waits = [w for w in caught if "called a synchronizing CUDA operation" in str(w.message)]
    where = Counter(f"{Path(w.filename).parent.name}/{Path(w.filename).name}:{w.lineno}" for w in waits)
    return Waits(len(waits), num_micro_batches, dict(where.most_common(5)))


@dataclass(frozen=True)
class LongRun:
    """Of windows trained one after the other: tokens and seconds, and the retries of the allocator after each."""

    num_tokens: int
    seconds: float
    num_retries: list[int]
    num_replays: int
    losses: list[float]


def run_long(job: Job, accelerator: Accelerator, cutter: Cutter | int, window: int, num_windows: int) -> LongRun:
    """Train on so many windows."""
    num_tokens = num_replays = 0
    retries, losses = [], []
    started = time.perf_counter()
    for execution in job.windows(accelerator, cutter, window, num_windows):
        retries.append(num_alloc_retries(job.device))
        losses.append(float(execution.loss_sum()) / execution.window.num_items)
        num_tokens += execution.window.num_tokens
        num_replays += execution.num_oom_replays
    return LongRun(num_tokens, time.perf_counter() - started, retries, num_replays, losses)
