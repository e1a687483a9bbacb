"""Loads a model in this process, and prints by how much it grew: at its peak, and after it; and what the model holds.

    python load_apart.py SMALL LARGE QUANTIZATION BYTES

The folder SMALL has a tiny model of the same architecture: it is loaded first, for what is imported on the way. Then
LARGE is, while the process may grow by so many BYTES of data (RLIMIT_DATA).
"""

import json
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.device.live_bytes import sum_bytes, tensors_of
from hf_accum.models.spec import ModelSpec
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.models.trainable import Trainable, load_trainable

EVERY_SECONDS = 0.002


def status(name: str) -> int:
    """Bytes of this process, as Linux says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class PeakOfAnonymous:
    """The most anonymous memory, resident, while it is active: not the pages of mapped files."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, status("RssAnon"))

    def __enter__(self) -> "PeakOfAnonymous":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()


def load(folder: str, quantization: Any) -> Trainable:
    """Frozen weights in bf16, with adapters."""
    config = RecipeConfig(max_length=16, lora=LoraConfig(rank=2), quantization=quantization)
    spec = ModelSpec(AutoModelForCausalLM, folder, "CAUSAL_LM")
    return load_trainable(spec, load_tokenizer(folder), config, precision="bf16", device=torch.device("cpu"))


def main(small: str, large: str, quantization: str, more_bytes: str) -> None:
    """Load both; print what the large one took."""
    load(small, quantization)
    most = status("VmData") + int(more_bytes)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    before = status("RssAnon")
    with PeakOfAnonymous() as anonymous:
        model = load(large, quantization).model
    left = status("RssAnon") - before
    print(json.dumps({"peak": anonymous.peak_bytes - before, "left": left, "held": sum_bytes(tensors_of(model))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
