"""A file of ONNX in onnxruntime: run, made smaller, and in the place of a model."""

import logging
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hf_accum.errors import UserError, first_line

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """See that what writes and runs ONNX is installed.

    Raises:
        UserError: if it is not.
    """
    for name in _PACKAGES:
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(
                f"export needs {', '.join(_PACKAGES)}: pip install 'hf-accum[onnx]' ({first_line(error)})"
            ) from error


def open_session(path: Path) -> Any:
    """A file in onnxruntime, on the CPU.

    Raises:
        UserError: if it takes none such.
    """
    try:
        return import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"onnxruntime cannot read what was exported ({first_line(error)})") from error


def run_session(session: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """What a file gives for inputs.

    Raises:
        UserError: if it takes none such.
    """
    try:
        (found,) = session.run(None, {name: values.numpy() for name, values in inputs.items()})
    except Exception as error:
        shapes = ", ".join(str(tuple(values.shape)) for values in inputs.values())
        raise UserError(f"onnxruntime cannot compute what was exported on {shapes} ({first_line(error)})") from error
    return torch.from_numpy(found)


def write_int8(path: Path, smaller: Path, *, is_large: bool) -> None:
    """Write a file's weights in 8 bits; what they are multiplied with is quantised as it comes.

    Raises:
        UserError: if onnxruntime cannot.
    """
    quantization = import_module("onnxruntime.quantization")
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it asks for a step before, which is for static quantisation
    try:
        how = {"weight_type": quantization.QuantType.QInt8, "use_external_data_format": is_large}
        quantization.quantize_dynamic(str(path), str(smaller), **how)
    except OSError:
        raise
    except Exception as error:
        raise UserError(f"--int8: onnxruntime cannot quantise this model ({first_line(error)})") from error
    finally:
        logging.root.setLevel(before)


class OnnxModel(nn.Module):
    """A file in the place of the model that it was made of, to be evaluated: it gives what tasks read."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        super().__init__()
        self._session, self._names = open_session(path), names
        self.is_on = nn.Parameter(torch.zeros(()), requires_grad=False)
        """The CPU: where inputs go."""

    def forward(self, **inputs: Tensor) -> Any:
        """The logits; and a text's vector as the state of each of its tokens, which any pooling gives back."""
        first = next(iter(inputs.values()))
        if "attention_mask" in self._names:
            inputs.setdefault("attention_mask", torch.ones_like(first))
        found = run_session(self._session, {name: inputs[name] for name in self._names})
        states = found[:, None].expand(-1, first.shape[1], -1) if found.ndim == 2 else None
        return SimpleNamespace(logits=found, last_hidden_state=states)
