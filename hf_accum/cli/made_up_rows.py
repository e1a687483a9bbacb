"""Rows that are made up, in the columns that a recipe's flags name: for a check without data."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.tasks.label_codes import names_of

_NUM_ROWS = 60
_LONGEST = 40  # words
_SIDE = 48  # pixels
_WORDS = [
    "patient",
    "fever",
    "cough",
    "chest",
    "pain",
    "with",
    "without",
    "acute",
    "chronic",
    "renal",
    "failure",
    "heart",
    "rate",
    "blood",
    "pressure",
    "normal",
    "left",
    "right",
    "lung",
    "liver",
    "elevated",
    "mild",
    "severe",
    "onset",
    "family",
    "history",
    "of",
    "the",
    "and",
    "or",
    "no",
    "seizure",
    "muscle",
    "weakness",
]


@contextmanager
def with_made_up_rows(config: RecipeConfig) -> Iterator[RecipeConfig]:
    """The same flags with a dataset that is there inside; each row has what the columns of the flags ask for.

    Raises:
        UserError: for a recipe whose columns are none that are known.
    """
    with TemporaryDirectory() as name:
        folder, draw = Path(name), random.Random(0)
        if hasattr(config, "image_column"):
            changes = _save_images(config, folder, draw)
        else:
            rows, changes = _rows(config, draw)
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        whole: dict[str, Any] = {"train_split": "train", "eval_split": None}
        whole |= {"dataset_revision": None, "dataset_config": None}
        yield replace(config, dataset=name, **whole, **changes)


def _rows(config: Any, draw: random.Random) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    def text() -> str:
        return " ".join(draw.choices(_WORDS, k=draw.randint(1, _LONGEST)))

    def words() -> dict[str, Any]:
        chosen = text().split()
        types = [*config.types] or ["finding"]
        tags = ["O" if draw.random() < 0.7 else f"B-{draw.choice(types)}" for _ in chosen]
        return {config.words_column: chosen, config.tags_column: tags}

    def labelled() -> dict[str, Any]:
        names = changes["labels"] or ["no", "yes"]
        label: Any = draw.choice(names)
        if config.problem == "regression":
            label = draw.gauss(0, 1)
        elif config.problem == "multi_label_classification":
            label = config.label_separator.join(name for name in names if draw.random() < 0.5)
        template = config.template
        columns = [config.text_column] if template is None else template.columns
        columns = [*columns, *filter(None, [config.text_pair_column])]
        return {column: text() for column in columns} | {changes["label_column"]: label}

    def said() -> dict[str, Any]:
        talk = [{"role": role, "content": text()} for role in ("user", "assistant")]
        return {config.messages_column: talk}

    changes: dict[str, Any] = {}
    if hasattr(config, "words_column"):
        make = words
    elif hasattr(config, "query_column"):
        make = lambda: {config.query_column: text(), config.document_column: text()}  # noqa: E731
    elif hasattr(config, "label_column"):
        make = labelled
        names = list(names_of(config.labels, config.label_column))
        column = config.label_column if isinstance(config.label_column, str) else "label"
        changes = {"label_column": column, "labels": names, "label_format": "auto"}
    elif getattr(config, "messages_column", None):
        make = said
    elif getattr(config, "prompt_column", None):
        make = lambda: {config.prompt_column: text(), config.response_column: text()}  # noqa: E731
    elif hasattr(config, "text_column"):
        changes = {"text_column": config.text_column or "text"}
        make = lambda: {changes["text_column"]: text()}  # noqa: E731
    else:
        raise UserError("`made_up`: has to be left out for this recipe, whose columns are not known: give `dataset`")
    rows = [make() for _ in range(_NUM_ROWS)]
    if config.group_column is not None:
        rows = [row | {config.group_column: str(place)} for place, row in enumerate(rows)]
    return rows, changes


def _save_images(config: Any, folder: Path, draw: random.Random) -> dict[str, Any]:
    """Images of noise, each with a class or a mask, as a folder with metadata."""
    from PIL import Image

    names = [*config.labels] or ["no", "yes"]
    rows = []
    for place in range(_NUM_ROWS):
        file, mask = f"{place}.png", f"mask-{place}.png"
        Image.frombytes("RGB", (_SIDE, _SIDE), draw.randbytes(3 * _SIDE**2)).save(folder / file)
        row: dict[str, Any] = {"file_name": file, config.label_column: draw.choice(names)}
        if config.task == "segmentation":
            Image.frombytes("L", (_SIDE, _SIDE), bytes(draw.choices(range(len(names)), k=_SIDE**2))).save(
                folder / mask
            )
            row = {"file_name": file, f"{config.mask_column}_file_name": mask}
        rows.append(row)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"image_column": "image", "labels": names}
