"""The model card of a run's result, its README.md: from what the run's folder says, with metadata that the hub reads.

No row of the data is in it, nor anything that quotes one.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from hf_accum.config.datasets import parts_of
from hf_accum.files import write_atomically
from hf_accum.models.usage import Usage, read_usage
from hf_accum.models.usage_lines import usage_section
from hf_accum.run.result import result_of

_USE = (
    "- For research, and for work on data like that which it was trained on. It is not a medical device, and no "
    "decision about a patient is to rest on it."
)
_MEASURED = (
    "- Measured on the held-out part of its own data alone, not on data of other sites, devices or years: "
    "measure it on yours first."
)
_SAME = {"sentence-similarity": "document", "image-classification": "image", "image-segmentation": "image"}
"""What rows of one group share, by the task, where no column says which they are; else a text."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OF_FILES = re.compile(r"\.(jsonl?|csv|tsv|parquet|xlsx|txt|zip|gz)$")


def write_card(folder: Path) -> None:
    """Write the card of a run's result into it, by what its folder says by now.

    Raises:
        OSError: if it cannot be written.
    """
    result = result_of(folder)
    if result is not None:
        write_atomically(result / "README.md", card_of(folder))


def card_of(folder: Path, result: Path | None = None, merged: str = "") -> str:
    """The card of a run's result: what is not known is left out.

    `result` is its folder, if it is not the run's own; `merged` says how an adapter became that model.
    """
    result = result or result_of(folder) or folder
    run, figures = _json(folder / "run.json"), _json(folder / "evaluation.json")
    config, usage = _yaml(folder / "config.yaml"), read_usage(result)
    is_adapter = (result / "adapter_config.json").is_file()
    name = str(run.get("recipe") or "fine-tuned").rpartition(".")[2].replace("_", "-")
    data = _metadata(name, usage, config, run, figures, is_adapter=is_adapter)
    sections = {
        "How to use it": usage_section(result),
        "Labels": _labels(result, usage),
        "Data": _data(config, run, usage),
        "Training": _training(config, run, figures, usage, merged, is_adapter=is_adapter),
        "Figures on held-out data": _figures(figures),
        "Intended use and limits": _limits(config, figures),
    }
    text = "\n".join(f"## {title}\n\n{said.strip()}\n" for title, said in sections.items() if said)
    line = "-" * 3
    return f"{line}\n{data.to_yaml()}\n{line}\n\n# {name}\n\n{text}"


def _metadata(
    name: str,
    usage: Usage | None,
    config: Mapping[str, Any],
    run: Mapping[str, Any],
    figures: Mapping[str, Any],
    *,
    is_adapter: bool,
) -> ModelCardData:
    task = None if usage is None else usage.task
    base = None if usage is None or usage.base is None else usage.base.get("hub_id")
    ids = [dataset for dataset in _datasets(config, run) if is_hub_id(dataset)]
    of_eval = ids[0] if len(ids) == 1 else None
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_type=of_eval or "other",
            dataset_name=of_eval or "the held-out part of the training data",
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in _plain(figures).items()
    ]
    tags = ["hf-accum", *(["lora"] if is_adapter else [])]
    return ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=task,
        base_model=base,
        datasets=ids or None,
        tags=tags,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _datasets(config: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    named = run.get("dataset") or config.get("dataset")
    return [part.location for part in parts_of(str(named))] if named else []


def is_hub_id(dataset: str) -> bool:
    """Whether a dataset's name is an id of the hub: not one that is embedded, a path, or a file."""
    return bool(_HUB_ID.fullmatch(dataset)) and not _OF_FILES.search(dataset) and not os.path.exists(dataset)


def _labels(result: Path, usage: Usage | None) -> str:
    names = _json(result / "config.json").get("id2label") or {}
    if not names or usage is None or not usage.task.endswith(("classification", "segmentation")):
        return ""
    if usage.problem == "regression":
        return ""
    lines = [f"{index}: `{name}`  " for index, name in sorted(names.items(), key=lambda item: int(item[0]))]
    meant = [f"`{code}` in the data is `{name}`" for code, name in usage.label_codes.items()]
    said = "Indices of the head, from 0 on, and the names that they have in the data (`id2label` of `config.json`):"
    return "\n".join([said, "", *lines, *meant])


def _data(config: Mapping[str, Any], run: Mapping[str, Any], usage: Usage | None) -> str:
    lines = []
    for dataset in _datasets(config, run):
        own = "a dataset of the author's own, which is not published with it"
        lines.append(f"- trained on: {dataset if is_hub_id(dataset) or dataset.startswith('embedded:') else own}")
    for key, said in (
        ("num_train", "examples to train on"),
        ("num_held_out", "held out"),
        ("num_calibration", "kept to calibrate on"),
    ):
        if run.get(key):
            lines.append(f"- {said}: {run[key]:,}")
    if config.get("eval_split"):
        lines.append(f"- held out: the split `{config['eval_split']}`")
    elif config.get("eval_fraction"):
        lines.append(f"- held out: a share of {config['eval_fraction']:g}, by whole groups")
    same = f"`{config['group_column']}`" if config.get("group_column") else None
    if same is None and usage is not None:
        same = "prompt" if "prompt" in usage.columns else _SAME.get(usage.task, "text")
    if same is not None:
        where = "drawn together for intervals" if config.get("eval_split") else "never on both sides of that"
        lines.append(f"- groups, {where}: rows with the same {same}")
    if usage is not None and usage.columns:
        columns = ", ".join(f"{what} from `{column}`" for what, column in usage.columns.items())
        lines.append(f"- columns: {columns}")
    if run.get("data_digest"):
        lines.append(f"- digest of the rows: `{run['data_digest']}`")
    return "\n".join(lines)


def _training(
    config: Mapping[str, Any],
    run: Mapping[str, Any],
    figures: Mapping[str, Any],
    usage: Usage | None,
    merged: str,
    *,
    is_adapter: bool,
) -> str:
    lines = []
    if config.get("effective_batch_size"):
        lines.append(f"- window: {config['effective_batch_size']} examples per optimizer step, all ranks together")
    if (is_adapter or merged) and (lora := config.get("lora")):
        targets = lora.get("target_modules")
        shown = targets if isinstance(targets, str) else ", ".join(targets or ())
        lines.append(f"- LoRA: rank {lora.get('rank')}, alpha {lora.get('alpha'):g}, on `{shown}`")
    if merged:
        lines.append(f"- {merged}")
    if config.get("quantization") not in (None, "none"):
        lines.append(f"- base in 4 bits while it was trained on: {config['quantization']}")
    step, of = figures.get("step"), run.get("num_steps")
    if step or of:
        lines.append(f"- optimizer steps: {step or of:,}{f' (of {of:,})' if step and of and step != of else ''}")
    for key, said in (
        ("learning_rate", "learning rate, at most"),
        ("optimizer", "optimizer"),
        ("resolution", "images scaled to, in pixels a side"),
        ("seed", "seed"),
    ):
        if config.get(key) is not None:
            lines.append(f"- {said}: {config[key]}")
    if usage is not None and usage.max_length is not None:
        lines.append(f"- tokens through the model at once, at most: {usage.max_length}")
    if run.get("num_trained_parameters") and run.get("num_parameters"):
        lines.append(f"- parameters trained: {run['num_trained_parameters']:,} of {run['num_parameters']:,}")
    if run.get("device"):
        ranks = f"{run.get('num_ranks', 1)} x " if run.get("num_ranks", 1) != 1 else ""
        precision = {"no": "float32"}.get(run.get("precision", "no"), run.get("precision"))
        lines.append(f"- hardware: {ranks}{run['device']}, precision {precision}")
    if versions := run.get("versions"):
        lines.append(f"- versions: {', '.join(f'{package} {number}' for package, number in versions.items())}")
    return "\n".join(lines)


def _plain(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures that are one number each; not those that count."""
    return {
        name: value
        for name, value in figures.items()
        if isinstance(value, int | float) and name != "step" and not name.startswith("num_")
    }


def _figures(figures: Mapping[str, Any]) -> str:
    plain, intervals = _plain(figures), figures.get("confidence_intervals") or {}
    if not plain:
        return ""
    rows = []
    for name, value in plain.items():
        interval = intervals.get(name)
        rows.append(f"| {name} | {value:.4g} | {f'{interval[0]:.4g} to {interval[1]:.4g}' if interval else ''} |")
    how = figures.get("bootstrap")
    level = "interval" if how is None else f"{how['level']:.0%} interval"
    said = "" if how is None else f"\nIntervals by a bootstrap over {how['num_groups']:,} groups.\n"
    number = figures.get("num_examples") or figures.get("num_texts")
    among = figures.get("num_documents")
    ranked = "" if among is None else f", each looked for among {among:,} documents"
    of = "" if number is None else f"On {number:,} held-out examples{ranked}.\n\n"
    return "\n".join([f"{of}| figure | value | {level} |", "| " + " | ".join(["-"] * 3) + " |", *rows, said])


def _limits(config: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    lines = [_USE, _MEASURED]
    if not figures:
        lines.append("- Not measured yet: the run that made it has not been evaluated.")
    if config.get("max_eval_examples"):
        lines.append(f"- The figures are of a sample of {config['max_eval_examples']:,} held-out rows at most.")
    return "\n".join(lines)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
