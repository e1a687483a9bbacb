"""A plan as JSON: the numbers of made-up variants, in the file as in their own functions."""

import json
from importlib.metadata import version

import torch
import transformers

from hf_accum import __version__
from hf_accum.accumulation.capacity import Peak
from hf_accum.accumulation.example import Lengths
from hf_accum.tuner.plan import Variant
from hf_accum.tuner.plan_json import as_json
from hf_accum.tuner.prediction import Prediction
from hf_accum.tuner.targets import Target, targets_of
from hf_accum.tuner.tracing import FixedBytes

FIXED = FixedBytes(weights=50, gradients=20, optimizer_state=30, optimizer_peak=180)
PEAK, ALIVE, FORWARD = Peak(((110.0, 10.0),), 64), Peak(((104.0, 6.0),), 64), Peak(((60.0, 3.0),), 64)


def variant(name: str, lengths: Lengths | None = None, assumed: str = "") -> Variant:
    return Variant(name, Prediction(PEAK, FORWARD, ALIVE, FIXED, []), 64, lengths or Lengths(), assumed)


def test_the_numbers_are_those_of_the_variants() -> None:
    targets = [Target("less", 179), Target("some", 200), Target("much", 10**9)]
    found = as_json([variant("LoRA")], [], ["lora"], targets)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    of = found["variants"]["lora"]
    assert of["largest"] == [
        {"memory": name, "budget_bytes": budget, "length": length, "num_examples": number}
        for name, budget, number in (("less", 179, None), ("some", 200, 9), ("much", 10**9, 4096))
        for length in (64, 32)
    ]
    assert of["one_example"] == {
        "length": 64,
        "parts_bytes": {
            "weights": 50,
            "gradients": 20,
            "optimizer_state": 30,
            "activations": 10,
            "temporaries": 10,
        },
        "peak_bytes": 120,
        "each_further_one_bytes": 10,
        "optimizer_step_bytes": 180,
        "evaluation_bytes": 63,
        "needed_bytes": 180,  # the optimizer's step needs more than one example
    }


def test_what_cannot_be_is_null_and_what_was_not_asked_for_not_there() -> None:
    why = "LoRA + checkpointing: no support for it"
    found = as_json([variant("full"), variant("QLoRA")], [why], ["qlora", "full", "lora_checkpointing"], [])
    assert list(found["variants"]) == ["full", "lora_checkpointing", "qlora"]
    assert found["variants"]["lora_checkpointing"] is None
    assert [of["name"] for of in found["variants"].values() if of is not None] == ["full", "QLoRA"]
    assert found["left_out"] == [why]


def test_the_memory_is_described() -> None:
    cards = as_json([variant("LoRA")], [], ["lora"], targets_of("RTX 3060 12GB", None, None))
    assert cards["memory"] == [
        {
            "name": "RTX 3060 12GB",
            "budget_bytes": 11 * 2**30,
            "card": {"name": "RTX 3060 12GB", "memory_bytes": 12 * 2**30},
            "capability": "8.6",
        }
    ]
    sizes = as_json([variant("LoRA")], [], ["lora"], targets_of(None, "8GiB", None))
    assert sizes["memory"] == [{"name": "8.00 GiB", "budget_bytes": 8 * 2**30, "card": None, "capability": None}]


def test_examples_of_one_length_have_one_row() -> None:
    patches = Lengths("patches", "resolution", False, 32)
    found = as_json([variant("LoRA", patches, "images of 3 channels")], [], ["lora"], [Target("some", 200)])
    assert (found["unit"], found["lengths"], found["assumed"]) == ("patches", [64], "images of 3 channels")
    assert [row["length"] for row in found["variants"]["lora"]["largest"]] == [64]
    assert as_json([variant("LoRA")], [], ["lora"], [])["assumed"] is None


def test_the_versions_are_those_installed() -> None:
    versions = as_json([variant("LoRA")], [], ["lora"], [])["versions"]
    assert list(versions) == ["torch", "transformers", "peft", "hf-accum"]
    assert torch.__version__.startswith(versions["torch"].partition("+")[0])
    assert versions["transformers"] == transformers.__version__
    assert versions["hf-accum"] == version("hf-accum") == __version__
