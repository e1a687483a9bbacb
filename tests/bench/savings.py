"""What each way to save memory saves: the peak of training without it and with it, traced and measured.

Two models with random weights, made on the spot: BERT base, and Llama 3.2 1B (vocabulary of 128,256) with 2 of its 16
layers. "Without" and "with" differ in nothing but the flag, or the function, that saves. The peak is that of a
forward and backward while the weights, the gradients and the optimizer's state are there, or that of the optimizer's
step where it is higher.

- traced: on tensors without memory, as `hf-accum plan` predicts it;
- measured: live bytes of real tensors on the CPU, over an optimizer's step and a forward and backward behind it. What
  goes to the host's memory cannot be told from what stays, where all is the host's.

    python tests/bench/savings.py
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import argument_parser, print_header, print_table, use_threads
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BitsAndBytesConfig,
    LlamaConfig,
)

from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.device.live_bytes import LiveBytes, sum_bytes, tensors_of
from hf_accum.models.quantization import quantization_config
from hf_accum.models.spec import ModelSpec
from hf_accum.models.trainable import load_trainable
from hf_accum.tasks.causal_lm.task import CausalTexts
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.language_modeling.chunked_loss import (
    ChunkedCrossEntropy,
    stop_before_output_layer,
    with_output_layer,
)
from hf_accum.tasks.text_classification.task import TextClassification, build_objective, model_config
from hf_accum.tuner.prediction import predict
from hf_accum.tuner.workload import Workload, workload_of

MIB = 2**20
CPU = torch.device("cpu")
LABELS = LabelColumn("label", "single_label_classification", ("a", "b", "c"))
LLAMA: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
LORA = RecipeConfig(lora=LoraConfig(rank=16), dropout=0.0)
FULL = replace(LORA, lora=LoraConfig(rank=0))
QLORA = replace(LORA, quantization="nf4")


@dataclass(frozen=True, eq=False)
class Side:
    """One way to train: a model of `save_models`, by these flags."""

    model: str
    config: RecipeConfig
    loading: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What is in force while the model is loaded."""
    changed: Callable[[Workload], Workload] = lambda work: work

    def build(self, folder: Path, length: int) -> Workload:
        """What is trained, with its weights."""
        config = replace(self.config, max_length=length)
        name, precision = str(folder / self.model), "no"
        if self.model == "llama":
            precision = "bf16"
            task: Any = CausalTexts(None, ChunkedCrossEntropy(precision=precision), length)
            spec = ModelSpec(AutoModelForCausalLM, name, "CAUSAL_LM", prepare=stop_before_output_layer)
        else:
            task = TextClassification("text", LABELS, build_objective(LABELS), None, length)
            spec = ModelSpec(AutoModelForSequenceClassification, name, "SEQ_CLS", model_config(LABELS))
        no_tokenizer = BertConfig()  # the texts are made up: nothing reads them
        with self.loading():
            trainable = load_trainable(spec, no_tokenizer, config, precision=precision, device=CPU)
        return self.changed(workload_of(trainable.model, task, config, precision))


@dataclass(frozen=True)
class Saving:
    """A row: what saves, where, and for how many examples of which length."""

    name: str
    where: str
    num_examples: int
    length: int
    without: Side
    with_it: Side
    is_measured: bool = True


def quantised_once(*of: Any) -> BitsAndBytesConfig | None:
    """As the loader has it, with a float32 for the scale of each 64 weights."""
    config = quantization_config(*of)
    if config is not None:
        config.bnb_4bit_use_double_quant = False
    return config


def quantising_once() -> AbstractContextManager[Any]:
    """The loader does so inside."""
    return patch("hf_accum.models.loading.quantization_config", quantised_once)


def own_masks() -> AbstractContextManager[Any]:
    """Each layer makes a mask of its own inside."""
    return patch("hf_accum.models.trainable.share_mask", lambda model: False)


def caching(work: Workload) -> Workload:
    """With the keys and values of all layers among the outputs, as transformers has it by default."""
    config: Any = work.model.config
    config.use_cache = True
    return work


def own_loss(work: Workload) -> Workload:
    """With transformers' loss of the whole logits."""

    def summed_loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, _ = batch
        with with_output_layer(model):
            return model(**inputs, labels=inputs["input_ids"], num_items_in_batch=1).loss

    return replace(work, summed_loss=summed_loss)


def savings() -> Iterator[Saving]:
    """The rows of the table."""
    llama, bert = Side("llama", LORA), Side("bert", LORA)
    in_float32 = replace(llama, config=replace(LORA, frozen_dtype="float32"))
    yield Saving("frozen weights in bf16, not float32", "Llama, LoRA", 2, 512, in_float32, llama)
    qlora = Side("llama", QLORA)
    once = replace(qlora, loading=quantising_once)
    yield Saving("double quantisation, not single", "Llama, QLoRA", 2, 512, once, qlora)
    yield Saving("one mask for all layers", "BERT, LoRA", 2, 512, replace(bert, loading=own_masks), bert)
    yield Saving("no cache of keys and values", "Llama, LoRA", 2, 512, replace(llama, changed=caching), llama)
    yield Saving("the loss in chunks", "Llama, LoRA", 2, 512, replace(llama, changed=own_loss), llama)
    full = Side("bert", FULL)
    in_8_bits, paged = (
        replace(full, config=replace(FULL, optimizer=optimizer)) for optimizer in ("adamw_8bit", "paged_adamw_8bit")
    )
    yield Saving("optimizer's state in 8 bits", "BERT, full", 1, 128, full, in_8_bits)
    yield Saving("the same, paged", "BERT, full", 1, 128, in_8_bits, paged, is_measured=False)
    offloaded = replace(bert, config=replace(LORA, activation_offload=True))
    yield Saving("activations in host memory", "BERT, LoRA", 2, 512, bert, offloaded, is_measured=False)


def measured(work: Workload, num_examples: int, length: int) -> int:
    """The peak of an optimizer's step, and of a forward and backward behind it, for real."""
    optimizer = work.optimizer(work.model)
    for parameter in work.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in work.model.parameters() if p.grad is not None]
    with LiveBytes(held=[*tensors_of(work.model), *gradients]) as live:
        optimizer.step()
        work.forward_backward(num_examples, length, CPU)
    return live.peak_bytes


def three_cells(without: int, with_it: int) -> tuple[str, str, str]:
    """Two peaks, and what is between them."""
    saved = without - with_it
    return f"{without / MIB:,.1f}", f"{with_it / MIB:,.1f}", f"{saved / MIB:,.1f} ({saved / without:.1%})"


@dataclass
class Peaks:
    """What training takes, traced and measured; each way of it once."""

    folder: Path
    _traced: dict[Any, int] = field(default_factory=dict)
    _measured: dict[Any, int] = field(default_factory=dict)

    def row(self, saving: Saving) -> tuple[str, ...]:
        """What a saving saves."""
        size = (saving.num_examples, saving.length)
        ways = [(side, *size) for side in (saving.without, saving.with_it)]
        for way in ways:
            if way not in self._traced:
                work = way[0].build(self.folder, saving.length)
                self._traced[way] = predict(work).needed_bytes(*size)
                if saving.is_measured:
                    self._measured[way] = measured(work, *size)
        traced = three_cells(*(self._traced[way] for way in ways))
        taken = three_cells(*(self._measured[way] for way in ways)) if saving.is_measured else ("traced only",) * 3
        return saving.name, f"{saving.where}, {saving.num_examples} x {saving.length}", *traced, *taken


def bytes_of_scales(double: bool) -> int:
    """Of one real layer in 4 bits, all that it holds beside these."""
    from bitsandbytes.nn import Params4bit

    weight = torch.randn(LLAMA["intermediate_size"], LLAMA["hidden_size"])
    make: Any = Params4bit
    layer = nn.Module()
    layer.weight = make(weight, requires_grad=False, quant_type="nf4", compress_statistics=double).to(CPU)
    return sum_bytes(tensors_of(layer)) - layer.weight.nbytes


def save_models(folder: Path) -> None:
    """Random ones, as their files would be."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA)).bfloat16().save_pretrained(folder / "llama")
    bert = AutoConfig.for_model("bert", num_labels=len(LABELS.names))
    AutoModelForSequenceClassification.from_config(bert).save_pretrained(folder / "bert")


def main() -> None:
    """The command line."""
    arguments = argument_parser(__doc__).parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_models(folder)
        peaks = Peaks(folder)
        rows = [peaks.row(saving) for saving in savings()]
    columns = ("what saves", "where", "traced: without", "with", "saved", "measured: without", "with", "saved")
    print(f"peaks of training in MiB; bitsandbytes {version('bitsandbytes')}\n")
    print_table(columns, rows)
    num_weights = LLAMA["intermediate_size"] * LLAMA["hidden_size"]
    print(f"beside the 4 bits of {num_weights:,} weights of a layer:")
    for double in (False, True):
        how, num_bytes = "double" if double else "single", bytes_of_scales(double)
        print(f"- {how} quantisation: {num_bytes:,} bytes, {8 * num_bytes / num_weights:.3f} bits a weight")


if __name__ == "__main__":
    main()
