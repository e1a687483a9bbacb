"""A model as an ONNX graph, by torch's exporter, and how far onnxruntime is from the model it was made of."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_accum.cli.exporting.session import open_session, run_session
from hf_accum.errors import UserError, first_line
from hf_accum.models.usage import Usage
from hf_accum.tasks.retrieval.task import encode_texts

LARGEST_DIFFERENCE = 1e-4
"""Of a value that onnxruntime gives."""
MOST_IN_ONE_FILE = 3 * 2**29
"""Bytes of weights; a file of ONNX has at most 2 GiB, and larger ones have theirs beside it."""
_LENGTHS, _BATCHES = (2, 3, 8, 31, 64, 200, 512), (1, 2, 5)

_NOISY = ("torch.onnx", "onnxscript", "onnx_ir")


class TextGraph(nn.Module):
    """What is computed of tokens: logits; or, with a `pooling`, the vector of a text, of length 1."""

    def __init__(self, model: nn.Module, pooling: Any = None) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """(num_texts, ...)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if self.pooling is None:
            return self.model(**inputs).logits.float()
        return F.normalize(encode_texts(self.model, inputs, self.pooling).float(), dim=-1)


class ImageGraph(nn.Module):
    """The logits of images, or of their pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(num_images, ...)."""
        return self.model(pixel_values=pixel_values).logits.float()


@dataclass(frozen=True)
class Graph:
    """A module whose inputs are tensors, and made-up ones: of texts, (batch, length) of tokens below `vocabulary`."""

    model: nn.Module
    module: nn.Module
    """What is computed with the model."""
    names: tuple[str, ...]
    output: str
    max_length: int
    """Of images, their pixels on a side, which do not vary."""
    vocabulary: int = 0
    """0: of images."""
    padding: int = 0

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        """Drawn at random, always the same; the last of several texts is padded."""
        draw = torch.Generator().manual_seed(1_000 * batch + length)
        if not self.vocabulary:
            return {"pixel_values": torch.randn(batch, 3, self.max_length, self.max_length, generator=draw)}
        ids = torch.randint(0, self.vocabulary - 1, (batch, length), generator=draw)
        ids += ids >= self.padding  # none is padding
        mask = torch.ones_like(ids)
        if batch > 1:
            mask[-1, max(1, length - length // 3) :] = 0
        made = {"input_ids": ids.masked_fill(mask == 0, self.padding), "attention_mask": mask}
        types = (torch.arange(length) > length // 2).long().expand_as(ids) * mask
        return {name: {**made, "token_type_ids": types}[name] for name in self.names}

    def shapes(self) -> list[tuple[int, int]]:
        """Batch sizes and lengths to be looked at."""
        if not self.vocabulary:
            return [(batch, self.max_length) for batch in _BATCHES]
        lengths = sorted({*(length for length in _LENGTHS if length < self.max_length), self.max_length})
        return [(batch, length) for length in lengths for batch in _BATCHES]


def graph_of(model: nn.Module, task: Any, usage: Usage) -> Graph:
    """What is computed of a task's inputs, on the CPU in float32; the model is moved there."""
    model = model.to("cpu", torch.float32).eval()
    if usage.task.startswith("image-"):
        return Graph(model, ImageGraph(model).eval(), ("pixel_values",), "logits", task.inputs.resolution)
    tokenizer = task.tokenizer
    names = ["input_ids", "attention_mask"]
    if usage.is_pair and "token_type_ids" in tokenizer.model_input_names:
        names.append("token_type_ids")
    pooling = task.pooling if usage.task == "sentence-similarity" else None
    assert usage.max_length is not None
    return Graph(
        model,
        TextGraph(model, pooling).eval(),
        tuple(names),
        "logits" if pooling is None else "vectors",
        usage.max_length,
        len(tokenizer),
        tokenizer.pad_token_id,
    )


def write_graph(graph: Graph, path: Path) -> None:
    """Write a graph for any number of texts of any length up to the longest, or of images.

    Raises:
        UserError: if torch's exporter cannot.
    """
    made = graph.inputs(2, min(7, graph.max_length))
    dims: dict[int, Any] = {0: torch.export.Dim("batch")}
    if graph.vocabulary:
        dims[1] = torch.export.Dim("length", max=graph.max_length)
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                graph.module,
                tuple(made.values()),
                input_names=list(made),
                output_names=[graph.output],
                dynamic_shapes=tuple(dims for _ in made),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            num_bytes = sum(p.numel() * p.element_size() for p in graph.module.parameters())
            program.save(str(path), external_data=num_bytes > MOST_IN_ONE_FILE)
    except OSError:
        raise
    except Exception as error:
        raise UserError(
            f"this model cannot be written as ONNX ({first_line(error)}): torch's exporter has to know all that it "
            "does; `hf-accum merge` makes it one of plain transformers"
        ) from error


def largest_difference(graph: Graph, path: Path) -> tuple[float, int]:
    """Between what a file gives in onnxruntime and what the module does; over how many shapes of inputs.

    Raises:
        UserError: if onnxruntime takes no file or no inputs of that kind.
    """
    session, largest = open_session(path), 0.0
    shapes = graph.shapes()
    for batch, length in shapes:
        made = graph.inputs(batch, length)
        with torch.no_grad():
            expected = graph.module(**made)
        found = run_session(session, made)
        if found.shape != expected.shape or not found.isfinite().all():
            return float("inf"), len(shapes)
        largest = max(largest, float((found - expected).abs().max()))
    return largest, len(shapes)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of itself: of libraries that are not there, and of names that change."""
    before: Mapping[str, int] = {name: logging.getLogger(name).level for name in _NOISY}
    try:
        for name in before:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
