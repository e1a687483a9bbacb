"""An exported model's folder: the graph, what makes its inputs, labels, README; there whole or not at all."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from hf_accum.cli.exporting.graph import (
    LARGEST_DIFFERENCE,
    MOST_IN_ONE_FILE,
    Graph,
    graph_of,
    largest_difference,
    write_graph,
)
from hf_accum.cli.exporting.lines import LABELS, MODEL, readme_of
from hf_accum.cli.exporting.session import OnnxModel, write_int8
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError, first_line
from hf_accum.files import fill_folder_atomically, write_json
from hf_accum.models.usage import Usage, read_usage
from hf_accum.run.evaluation import CALIBRATION
from hf_accum.run.result import check_through
from hf_accum.run.shown_figures import in_a_line

_TASKS = (
    *("text-classification", "token-classification", "sentence-similarity"),
    *("image-classification", "image-segmentation"),
)


def exportable(folder: Path, config: RecipeConfig) -> Usage:
    """How the result of a run is used, if it can be exported.

    Raises:
        UserError: if the run is not through, its model is quantised, or of a kind that ONNX is not the way for.
    """
    usage = read_usage(check_through(folder))
    if usage is None:
        raise UserError(f"{folder}: does not say how its model is used (it has no usage.json): train it anew")
    if usage.task not in _TASKS:
        way_out = {
            "text-generation": (
                "`hf-accum merge` writes a whole model, which vLLM and llama.cpp's converter take: they generate "
                "with a cache of keys and values, which the graph of one forward has not"
            ),
            "fill-mask": (
                "it is made to be trained further, as the `model` of another recipe: export the run of that one"
            ),
        }.get(usage.task, "`hf-accum merge` writes it for transformers")
        raise UserError(f"{folder}: a model for {usage.task} is not exported as ONNX; {way_out}")
    if config.quantization != "none":
        raise UserError(
            f"`quantization` {config.quantization}: has to be none to export, whose weights are in float32: then "
            "the adapter is put on the base as it is stored"
        )
    return usage


def exported_flags(config: RecipeConfig) -> RecipeConfig:
    """The flags with the base in float32, and what was calibrated left as it is."""
    changes: dict[str, Any] = {"frozen_dtype": "float32"}
    of_recipes: dict[str, Any] = {"tune_thresholds": False, "temperature_scaling": False}
    return replace(config, **changes, **{name: v for name, v in of_recipes.items() if hasattr(config, name)})


def write_export(
    model: nn.Module,
    task: Any,
    usage: Usage,
    run: Path,
    output: Path,
    figures: Callable[[nn.Module], Mapping[str, Any]] | None = None,
) -> None:
    """Write a model, checked, into a folder. With `figures` of a model its weights are in 8 bits, and both are told.

    Raises:
        UserError: if it cannot be exported, differs too much, or the disk is full: nothing is written then.
    """
    graph = graph_of(model, task, usage)

    def fill(partial: Path) -> None:
        path = partial / MODEL
        write_graph(graph, path)
        about = [_checked(graph, path)]
        if figures is not None:
            about += _made_smaller(graph, path, figures)
        result = check_through(run)
        names = ["tokenizer.json", "tokenizer_config.json"] if graph.vocabulary else ["preprocessor_config.json"]
        for name in names:
            if not (result / name).is_file():
                raise UserError(f"{run}: its {result.name}/ has no {name}, of which the model's inputs are made")
            shutil.copyfile(result / name, partial / name)
        write_json(partial / LABELS, _use(model, task, usage, result))
        readme = readme_of(
            usage, graph.names, graph.padding, [f"Of the run {run.name}, by `hf-accum export`.", *about]
        )
        (partial / "README.md").write_text(readme, encoding="utf-8")
        for line in about:
            print(line)

    try:
        fill_folder_atomically(output, fill)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({first_line(error)}); nothing of it is left") from error
    print(f"written: {output}")


def _checked(graph: Graph, path: Path) -> str:
    largest, num_shapes = largest_difference(graph, path)
    if not largest <= LARGEST_DIFFERENCE:
        raise UserError(
            f"onnxruntime gives values that differ by {largest:.1e} from the run's own model, more than the "
            f"{LARGEST_DIFFERENCE:.0e} that is allowed: nothing is written; `hf-accum merge` makes a model of "
            "transformers"
        )
    return (
        f"onnxruntime differs from the run's own model by {largest:.1e} at most, over {num_shapes} shapes of inputs"
    )


def _made_smaller(graph: Graph, path: Path, figures: Callable[[nn.Module], Mapping[str, Any]]) -> list[str]:
    """Put weights in 8 bits in the place of a graph; what that costs, in lines."""
    before, own = _num_bytes(path), in_a_line(figures(graph.model))
    with TemporaryDirectory(dir=path.parent) as other:
        for file in path.parent.glob(f"{path.name}*"):  # weights of a large one are beside it
            shutil.move(file, other)
        write_int8(Path(other) / path.name, path, is_large=before > MOST_IN_ONE_FILE)
    differs, _ = largest_difference(graph, path)
    sizes = f"{_num_bytes(path) / 2**20:,.1f} MiB in the place of {before / 2**20:,.1f}"
    return [
        f"weights in 8 bits: {sizes}; values differ by {differs:.1e} at most",
        f"float32: {own}",
        f"8 bits: {in_a_line(figures(OnnxModel(path, graph.names)))}",
    ]


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _use(model: nn.Module, task: Any, usage: Usage, result: Path) -> dict[str, Any]:
    """What the README's lines read: labels in order, how logits are read, how images are scaled."""
    names: Mapping[Any, str] = {}
    if usage.task != "sentence-similarity":
        names = getattr(getattr(model, "config", None), "id2label", None) or {}
    use: dict[str, Any] = {"labels": [names[key] for key in sorted(names, key=int)]}
    if usage.task.startswith("image-"):
        inputs = task.inputs
        use |= {"resolution": inputs.resolution, "resample": inputs.resample, "order": list(inputs.order)}
        use |= {"scale": inputs.scale.tolist(), "shift": inputs.shift.tolist()}
    file = result / CALIBRATION
    fitted = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return use | {"temperature": fitted.get("temperature", 1.0), "thresholds": fitted.get("thresholds", {})}
