"""What each way to save memory saves: predicted without a device, and taken by real tensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from workload_cases import Counter

from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.device.live_bytes import tensors_of
from hf_accum.models.spec import ModelSpec
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.models.trainable import load_trainable
from hf_accum.tasks.causal_lm.task import CausalTexts
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy, stop_before_output_layer
from hf_accum.tasks.text_classification.task import TextClassification, build_objective, model_config
from hf_accum.tuner.prediction import predict
from hf_accum.tuner.workload import Workload, planned, workload_of

CPU = torch.device("cpu")
LENGTH, NUM_EXAMPLES = 64, 4
SIZES: dict[str, Any] = {
    "vocab_size": 3000,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
}
LABELS = LabelColumn("label", "single_label_classification", ("a", "b", "c"))


def save(folder: Path, architecture: str) -> None:
    torch.manual_seed(0)
    more = {"num_key_value_heads": 2} if architecture == "llama" else {}
    config = AutoConfig.for_model(architecture, **SIZES | more | {"num_labels": len(LABELS.names)})
    auto: Any = AutoModelForCausalLM if architecture == "llama" else AutoModelForSequenceClassification
    auto.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(str(folder))


def real_and_planned(
    folder: Path, architecture: str, config: RecipeConfig, precision: str, chunk_size: int = 64
) -> tuple[Workload, Workload]:
    tokenizer = load_tokenizer(str(folder))
    if architecture == "llama":
        task: Any = CausalTexts(tokenizer, ChunkedCrossEntropy(chunk_size, precision), LENGTH)
        spec = ModelSpec(AutoModelForCausalLM, str(folder), "CAUSAL_LM", prepare=stop_before_output_layer)
    else:
        task = TextClassification("text", LABELS, build_objective(LABELS), tokenizer, LENGTH)
        spec = ModelSpec(AutoModelForSequenceClassification, str(folder), "SEQ_CLS", model_config(LABELS))
    trainable = load_trainable(spec, tokenizer, config, precision=precision, device=CPU)
    if config.gradient_checkpointing is True:
        trainable.checkpoint()
    return workload_of(trainable.model, task, config, precision), planned(spec, task, config, precision)


def taken(work: Workload) -> int:
    """Two windows for real: in the second the optimizer's state is there."""
    optimizer = work.optimizer(work.model)
    with Counter(tensors_of(work.model)) as counter:
        for _ in range(2):
            work.forward_backward(NUM_EXAMPLES, LENGTH, CPU)
            work.forward_backward(NUM_EXAMPLES, LENGTH, CPU)
            optimizer.step()
            optimizer.zero_grad()
    return counter.peak


LORA = RecipeConfig(max_length=LENGTH, lora=LoraConfig(rank=4), dropout=0.0)
FULL = replace(LORA, lora=LoraConfig(rank=0))
IN_FLOAT32 = replace(LORA, frozen_dtype="float32")
CASES: dict[str, tuple[str, str, RecipeConfig, dict[str, Any], float]] = {
    # architecture, precision, configuration, what saves, the least share that it saves
    "frozen weights in bf16": ("llama", "bf16", IN_FLOAT32, {"frozen_dtype": "auto"}, 0.25),
    "frozen weights in bf16, bert": ("bert", "bf16", IN_FLOAT32, {"frozen_dtype": "auto"}, 0.2),
    "state in 8 bits": ("bert", "no", FULL, {"optimizer": "adamw_8bit"}, 0.25),
    "embeddings frozen": ("bert", "no", FULL, {"freeze_embeddings": True}, 0.2),
    "adapters": ("bert", "no", FULL, {"lora": LoraConfig(rank=4)}, 0.3),
    "four bits": ("llama", "bf16", LORA, {"quantization": "nf4"}, 0.02),
}


IN_DEFAULT = ("state in 8 bits",)


@pytest.mark.parametrize(
    "case", [case if case in IN_DEFAULT else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_what_is_saved_is_predicted_and_taken(tmp_path: Path, case: str) -> None:
    architecture, precision, config, saving, least = CASES[case]
    save(tmp_path, architecture)
    predicted, measured = {}, {}
    for name, how in (("before", config), ("after", replace(config, **saving))):
        real, plan = real_and_planned(tmp_path, architecture, how, precision)
        predicted[name] = predict(plan).needed_bytes(NUM_EXAMPLES, LENGTH)
        measured[name] = taken(real)
        assert 0.99 <= predicted[name] / measured[name] <= 1.06, (name, predicted, measured)
    for of in (predicted, measured):
        assert 1 - of["after"] / of["before"] >= least, of


@pytest.mark.slow
def test_small_chunks_of_the_loss_save(tmp_path: Path) -> None:
    save(tmp_path, "llama")
    needed = []
    for chunk_size in (256, 16):
        _, plan = real_and_planned(tmp_path, "llama", LORA, "no", chunk_size)
        needed.append(predict(plan).needed_bytes(NUM_EXAMPLES, LENGTH))
    assert needed[1] < 0.9 * needed[0]


@pytest.mark.slow
def test_activations_elsewhere_are_not_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicted only: a CPU has no other memory."""
    monkeypatch.setattr("hf_accum.models.offload._FROM_BYTES", 4096)
    save(tmp_path, "bert")
    needed = {}
    for offload in (False, True):
        _, plan = real_and_planned(tmp_path, "bert", replace(LORA, activation_offload=offload), "no")
        prediction = predict(plan)
        needed[offload] = prediction.activations.bytes_at(NUM_EXAMPLES, LENGTH) - prediction.fixed.total
    assert needed[True] < 0.3 * needed[False]


def test_a_state_that_the_driver_moves_is_not_of_the_device(tmp_path: Path) -> None:
    save(tmp_path, "bert")
    states = {}
    for optimizer in ("adamw", "adamw_8bit", "paged_adamw_8bit"):
        config = replace(FULL, optimizer=optimizer)
        work = planned(
            ModelSpec(AutoModelForSequenceClassification, str(tmp_path), "SEQ_CLS", model_config(LABELS)),
            TextClassification("text", LABELS, build_objective(LABELS), None, LENGTH),
            config,
        )
        states[optimizer] = predict(work).fixed.optimizer_state
    assert states["adamw_8bit"] < 0.3 * states["adamw"]
    assert states["paged_adamw_8bit"] < 0.6 * states["adamw_8bit"]
