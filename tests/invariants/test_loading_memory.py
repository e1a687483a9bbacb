"""What loading a model takes of the host: what is loaded, and a tensor at a time of what is in the file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import run
from tiny import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="/proc, glibc's malloc")]

SCRIPT = Path(__file__).with_name("load_apart.py")
LARGE: dict[str, Any] = {
    "vocab_size": 20_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
SMALL = LARGE | {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
IN_FILE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def save(folder: Path, sizes: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **sizes, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(str(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a large model in float32 (480 MB) and in bf16, and a tiny one."""
    root = tmp_path_factory.mktemp("models")
    for name, dtype in IN_FILE.items():
        save(root / name, LARGE, dtype)
    save(root / "small", SMALL, torch.float32)
    return root


def bytes_of(model: Path) -> int:
    return (model / "model.safetensors").stat().st_size


def load(model: Path, quantization: str, share: float) -> subprocess.CompletedProcess[str]:
    """In bf16, in a process of its own, which may grow by this share of the file.

    The kernel sees to that: RLIMIT_DATA. It counts the file's mapping, a private one, by all its bytes.
    """
    folders = (str(model.parent / "small"), str(model))
    most = round((1 + share) * bytes_of(model))
    return run([sys.executable, str(SCRIPT), *folders, quantization, str(most)])


@pytest.mark.parametrize(("stored", "quantization"), [("float32", "none"), ("float32", "nf4"), ("bfloat16", "nf4")])
def test_the_peak_of_loading_is_at_most_1_15_times_the_file(folder: Path, stored: str, quantization: str) -> None:
    """Of anonymous memory: the pages of the file itself the system can drop at any time. The kernel allows 0.65."""
    model = folder / stored
    done = load(model, quantization, share=0.65)
    assert done.returncode == 0, done.stderr[-3000:]
    took = json.loads(done.stdout.splitlines()[-1])
    # What has the type of the file stays in its mapping: the embeddings and the output layer.
    mapped = 2 * 2 * LARGE["vocab_size"] * LARGE["hidden_size"] if stored == "bfloat16" else 0
    weights = took["held"] - mapped
    print({name: round(num_bytes / bytes_of(model), 3) for name, num_bytes in took.items()})
    assert weights <= took["peak"] <= 1.15 * bytes_of(model)
    assert took["left"] - weights <= 28 * 2**20, "freed, and not given back"


def test_weights_of_16_bits_do_not_load_where_the_process_may_grow_by_less_than_they_take(folder: Path) -> None:
    """So the kernel does count."""
    done = load(folder / "float32", "none", share=0.4)
    assert done.returncode != 0
    assert "can't allocate memory" in done.stderr
