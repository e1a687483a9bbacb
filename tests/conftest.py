"""Settings for all tests: no network, few threads, quiet libraries."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "disabled"

import gc
import socket
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from docstring_parser.attrdoc import AttributeDocstrings
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # the models are tiny: more threads would only wait for each other

settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """A fresh Accelerator on the CPU; what accelerate keeps per process is reset afterwards."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield Accelerator(cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(autouse=True, scope="module")
def quick_release() -> None:
    """What the libraries and the collection of tests made is not searched for garbage after each failure."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def quick_parsers() -> Iterator[None]:
    """The help of a class's flags is read out of its source once, and not for each parser that is made of it."""
    read = AttributeDocstrings.get_attr_docs
    with pytest.MonkeyPatch.context() as patch:
        read_once = cache(lambda component: read(AttributeDocstrings(), component))
        patch.setattr(AttributeDocstrings, "get_attr_docs", lambda _, component: read_once(component))
        yield


@pytest.fixture(autouse=True)
def same_randomness() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is an error: for tests marked with `usefixtures("no_network")`."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
