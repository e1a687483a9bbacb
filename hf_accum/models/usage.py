"""How a result is used: what its weights and its model's config do not say, beside them in `usage.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

USAGE = "usage.json"
"""Its file."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of a trained model."""

    task: str
    """As the hub calls it (`pipeline_tag`): text-classification, say."""
    auto_class: str
    """The class of transformers that loads the model."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What was read of a row, by what it is: `text`, `label`, ..."""
    problem: str | None = None
    """Of a classification: one label each, several, or a number."""
    label_codes: Mapping[str, str] = field(default_factory=dict)
    """The label that each number in the data meant, where they were given names."""
    max_length: int | None = None
    """Tokens that go through the model at once, special ones included."""
    is_pair: bool = False
    """Two texts are read together."""
    windows: Mapping[str, Any] | None = None
    """How a longer text is cut, and its windows' logits pooled: the values of `TextWindows`. None: truncated."""
    overlap: int | None = None
    """Tokens that the parts of a longer text share, of which a word counts where it has more context."""
    layers: tuple[str, ...] = ()
    """Types of entities that have a layer of tags each."""
    pooling: str | None = None
    """What of the last states is used."""
    is_calibrated: bool = False
    """A temperature, or thresholds, are in calibration.json."""
    first_tokens: tuple[int, ...] = ()
    """What stands before a text that a language model goes on with."""
    replaces_head: bool = False
    """The base may have a head of its own, for other labels."""
    base: Mapping[str, Any] | None = None
    """What the weights were made from: the values of `Base`."""


def write_usage(usage: Usage, folder: Path) -> None:
    """Write it beside the weights."""
    said = {name: value for name, value in asdict(usage).items() if value not in (None, {}, (), False)}
    (folder / USAGE).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_usage(folder: Path) -> Usage | None:
    """What is said in a folder of weights; None: nothing."""
    file = folder / USAGE
    return Usage(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
