"""`hf-accum merge`: plain transformers, in a process without peft, gets from the folder what the adapter tells."""

import contextlib
import errno
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from chats import save_chat_model
from every_recipe import RECIPES, run_of
from plain_peft import load_adapter
from safetensors.torch import load_file
from tiny_vision import SIDE
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from hf_accum.cli.main import main
from hf_accum.models.usage import read_usage
from hf_accum.run import merge as merging
from hf_accum.tasks.vision.segmenter import SemanticSegmenter

Recipe = Callable[..., Path]
MADE = {"max_steps": 4, "effective_batch_size": 16, "learning_rate": 0.01}
IN_ITS_OWN_PROCESS = """
import sys
sys.modules["peft"] = None
kind, folder, inputs, outputs = sys.argv[1:]
if kind == "SemanticSegmenter":
    from hf_accum.tasks.vision.segmenter import SemanticSegmenter as loaded_by
else:
    sys.modules["hf_accum"] = None
    import transformers
    loaded_by = getattr(transformers, kind)
import torch
model = loaded_by.from_pretrained(folder).eval()
with torch.no_grad():
    given = model(**torch.load(inputs))
torch.save(given.logits if hasattr(given, "logits") else given.last_hidden_state, outputs)
"""


def merge(run: Path, output: Path, *flags: str) -> Path:
    main(["merge", str(run), str(output), *flags])
    assert [path.name for path in output.parent.glob(".*partial")] == []
    return output


def loaded_apart(kind: str, folder: Path, inputs: dict[str, torch.Tensor], place: Path) -> torch.Tensor:
    torch.save(inputs, place / "inputs.pt")
    arguments = [kind, str(folder), str(place / "inputs.pt"), str(place / "outputs.pt")]
    subprocess.run([sys.executable, "-c", IN_ITS_OWN_PROCESS, *arguments], check=True, capture_output=True)
    return torch.load(place / "outputs.pt")


def of_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], str]:
    """What the lines of a folder's README leave, and print."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, names)
    return names, said.getvalue()


QUICK = ("clinical_classification", "medical_lm")


@pytest.mark.parametrize(
    "recipe_id",
    [recipe.id if recipe.id in QUICK else pytest.param(recipe.id, marks=pytest.mark.slow) for recipe in RECIPES],
)
def test_plain_transformers_gets_what_the_adapter_tells(
    recipe_id: str,
    tmp_path: Path,
    accelerator: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_of(recipe_id, tmp_path, None, **{"lora.rank": 2})
    capsys.readouterr()
    output = merge(run, tmp_path / "out" / "merged")
    told = capsys.readouterr().out
    outputs = [abs(float(number)) for number in re.findall(r"\] (\S+) \| ", told)]
    difference, of_largest = re.findall(r"largest difference: ([^\s,]+)(?:, (\S+) of the largest output)?", told)[0]
    if max(outputs) > 1:  # those that are shown
        assert float(of_largest) <= float(difference) / max(outputs) * 1.05
    usage = read_usage(output)
    assert usage is not None
    inputs = {"pixel_values": torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))}
    if not recipe_id.startswith("driving_images"):
        tokenizer = AutoTokenizer.from_pretrained(output)
        inputs = tokenizer(["w1 w2 w3", "w4 w7", "w9"], padding=True, padding_side="right", return_tensors="pt")
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    kind: Any = getattr(transformers, usage.auto_class, None)
    if kind is None:
        kind = SemanticSegmenter
    adapted = load_adapter(kind, run / "adapter", tmp_path / f"{recipe_id.partition('-')[0]}-model")
    with torch.no_grad():
        given = adapted(**inputs)
        expected = given.logits if hasattr(given, "logits") else given.last_hidden_state
        with adapted.disable_adapter():
            bare = adapted(**inputs)
            bare = bare.logits if hasattr(bare, "logits") else bare.last_hidden_state
    assert (bare - expected).abs().max() > 1e-2  # there is something to merge
    got = loaded_apart(usage.auto_class, output, inputs, tmp_path)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert {file.name for file in output.iterdir()} >= {"README.md", "config.json", "model.safetensors", "usage.json"}
    card = (output / "README.md").read_text()
    assert "library_name: transformers" in card
    assert re.search(r"the adapter is merged into its base \(sha256:\w{64}\), in float32", card)
    for file in output.iterdir():  # of this machine
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    assert "peft" not in card.partition("## How to use it")[2].partition("```\n")[0]
    of_lines(output, monkeypatch)  # runs as it stands


def test_a_pooled_classifier_with_what_was_fitted(
    recipe: Recipe, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE", str(tiny_model))
    how = {"pooling": "mean", "problem": "multi_label_classification", "tune_thresholds": True, "dropout": 0.2}
    run = recipe(**MADE, **how)
    output = merge(run, tmp_path / "merged")
    of_adapter, told = of_lines(run / "adapter", monkeypatch)
    of_merged, also_told = of_lines(output, monkeypatch)
    torch.testing.assert_close(of_merged["logits"], of_adapter["logits"], atol=1e-5, rtol=0)
    assert told.count("{") == also_told.count("{") == 2
    assert (output / "calibration.json").read_text() == (run / "adapter" / "calibration.json").read_text()
    assert AutoConfig.from_pretrained(output).hidden_dropout_prob == 0.1  # the base's own


@pytest.mark.slow
def test_a_language_model_is_whole(tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on in 4 bits, stored in 16, tied: what vLLM and llama.cpp's converter read is there."""
    from recipes.medical_lm import main as train

    base = tmp_path / "base"
    save_chat_model(base, dtype=torch.bfloat16, tie_word_embeddings=True, initializer_range=0.1)
    GenerationConfig(eos_token_id=[1, 5], do_sample=True, temperature=0.6).save_pretrained(base)
    data = tmp_path / "chats.jsonl"
    said = [[("user", f"what is {n}"), ("assistant", f"{n} is {n}")] for n in range(40)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in one]} for one in said]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = {"model": base, "dataset": data, "output_dir": tmp_path / "run", "quantization": "nf4", "max_steps": 3}
    named |= {"messages_column": "messages", "num_samples": 0, "max_length": 128, "learning_rate": 0.01}
    named |= {"effective_batch_size": 8, "micro_batch_size": 4}
    train([f"--{name}={value}" for name, value in named.items()])
    capsys.readouterr()
    output = merge(tmp_path / "run", tmp_path / "merged")
    told = capsys.readouterr().out
    assert "adapter | merged, bfloat16; the largest outputs ([number]) of rows that the run held out" in told
    assert "note: the adapter was trained on a base in 4 bits (nf4), and is merged into the base as it is" in told

    config = json.loads((output / "config.json").read_text())
    own = json.loads((base / "config.json").read_text())
    assert {name for name in own if config.get(name) != own[name]} <= {"pad_token_id"}
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    generation = GenerationConfig.from_pretrained(output)
    assert (generation.eos_token_id, generation.temperature, generation.do_sample) == ([1, 5], 0.6, True)
    weights = load_file(output / "model.safetensors")
    assert weights.keys() == load_file(base / "model.safetensors").keys()
    assert "lm_head.weight" not in weights
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (base, output)]
    talk = [tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False) for tokenizer in tokenizers]
    assert talk[0] == talk[1]
    named_class = json.loads((output / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert named_class == "PreTrainedTokenizerFast"  # which every version of transformers knows

    ids = {"input_ids": torch.arange(10, 60)[None]}
    adapted = load_adapter(AutoModelForCausalLM, tmp_path / "run" / "adapter", base).float()
    with torch.no_grad():
        expected = adapted(**ids).logits
    exact = merge(tmp_path / "run", tmp_path / "exact", "--dtype=float32")
    got = loaded_apart("AutoModelForCausalLM", exact, ids, tmp_path)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    rounded = load_file(output / "model.safetensors")
    for name, weight in load_file(exact / "model.safetensors").items():
        assert torch.equal(rounded[name], weight.bfloat16()), name
    assert loaded_apart("AutoModelForCausalLM", output, ids, tmp_path).dtype == torch.bfloat16


def test_what_cannot_be_merged_is_said_and_nothing_is_left(
    recipe: Recipe, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(notes, tmp_path / "data")
    run, output = recipe(**MADE, dataset=data), tmp_path / "out" / "merged"

    def said(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["merge", *map(str, arguments)])
        assert ended.value.code == 2
        assert not output.parent.exists() or not any(output.parent.iterdir())
        return capsys.readouterr().err

    assert "has to be the folder of a run" in said(tmp_path, output)
    assert "has to be a new or empty folder" in said(run, run)
    assert "no_such.jsonl" in said(run, output, "--dataset=no_such.jsonl")
    whole = recipe(max_steps=1, **{"lora.rank": 0})
    error = said(whole, output)
    assert "has no adapter, and nothing to merge: all weights were trained" in error
    assert f"{whole / 'model'} is the whole model" in error

    with monkeypatch.context() as patched:  # a merge that does nothing: the base without its adapter
        patched.setattr(merging, "merge", lambda adapted, dtype: (adapted.unload().to(dtype).eval(), []))
        assert "the merged model does not do what the adapter does" in said(run, output)
        assert "float16 explains" in said(run, output, "--dtype=float16")
    with monkeypatch.context() as patched:
        patched.setattr(merging.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1024}))
        assert "and the disk has 1 KiB left" in said(run, output)
    with monkeypatch.context() as patched:

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(merging, "write_model", full)
        error = said(run, output)
        assert "could not be written (OSError: [Errno 28] No space left on device; " in error
        assert error.endswith(" are free there: make room, or give another place); nothing is left of it\n")
    with monkeypatch.context() as patched:

        def stopped(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(merging, "write_model", stopped)
        with pytest.raises(KeyboardInterrupt):
            merge(run, output)
        assert not any(output.parent.iterdir())

    shutil.rmtree(data)
    merge(run, tmp_path / "made-up")
    assert "rows that are made up, as those that the run held out are not there" in capsys.readouterr().out
    monkeypatch.setattr(merging, "fits_in_float32", lambda model: False)
    merge(run, tmp_path / "large", "--dtype=bfloat16", f"--dataset={notes / 'train-2.jsonl'}")
    told = capsys.readouterr().out
    assert f"of rows of {notes / 'train-2.jsonl'}" in told
    assert "note: the base is stored in float32" in told
    (run / "evaluation.json").unlink()
    assert "has to be a run that is through" in said(run, output)
