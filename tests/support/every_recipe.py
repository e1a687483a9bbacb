"""Every recipe on a tiny model and dataset: what tests need to know of it."""

import importlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiny import WORDS, make_tokenizer, save_base
from tiny_vision import SIDE, save_images, save_vision_model
from transformers import AutoModel, AutoModelForCausalLM

from hf_accum.tasks.causal_lm.task import CausalTexts
from hf_accum.tasks.masked_lm.task import MaskedTexts
from hf_accum.tasks.retrieval.task import TextRetrieval
from hf_accum.tasks.text_classification.task import TextClassification
from hf_accum.tasks.token_classification.task import EntityTagging
from hf_accum.tasks.vision.classification import ImageClassification
from hf_accum.tasks.vision.segmentation import SemanticSegmentation

CLASSES = ("eye", "heart", "muscle")


@dataclass(frozen=True)
class Recipe:
    """A recipe, its row in the test data, the class of transformers that loads its base."""

    name: str
    make_row: Callable[[random.Random], dict[str, Any]] | None
    """None: of a recipe of images."""
    task: type
    """What its examples are."""
    loaded_by: str
    num_labels: int | None
    flags: dict[str, Any]
    architecture: str = "bert"
    auto_class: Any = AutoModel
    has_checkpointing: bool = True
    """Whether its model can compute activations again."""
    is_second_task: bool = False
    """Of a recipe that is in the list already."""

    @property
    def id(self) -> str:
        """By which tests tell it from the others."""
        return "-".join([self.name, *([self.flags["task"]] if "task" in self.flags else [])])

    def make_flags(self, folder: Path, output: Path, **more: Any) -> list[str]:
        """The flags of a run on a tiny model and 120 rows, which are made where they are not there."""
        model, data = folder / f"{self.name}-model", folder / f"{self.name}-data"
        if not data.is_dir():
            self._save(model, data)
        named = {"model": model, "dataset": data, "output_dir": output, "micro_batch_size": 4}
        named |= {"resolution": SIDE, "lora.rank": 2} if self.make_row is None else {"max_length": 16}
        named |= {"effective_batch_size": 16, **self.flags, **more}
        return [f"--{name}={value}" for name, value in named.items()]

    def _save(self, model: Path, data: Path) -> None:
        if self.make_row is None:
            save_vision_model(model)
            save_images(data)
            return
        save_base(model, self.architecture, make_tokenizer(mask_token=True), self.auto_class)
        draw = random.Random(0)
        rows = [json.dumps(self.make_row(draw)) + "\n" for _ in range(120)]
        data.mkdir()
        for number, (start, end) in enumerate([(0, 70), (70, 78), (78, 120)]):
            (data / f"train-{number}.jsonl").write_text("".join(rows[start:end]))


def classified(draw: random.Random) -> dict[str, Any]:
    """A text of 2 to 20 words with a class."""
    label = draw.randrange(3)
    words = draw.choices(WORDS[label::3], k=draw.randint(1, 12)) + draw.choices(WORDS, k=draw.randint(1, 8))
    return {"text": " ".join(words), "label": CLASSES[label]}


def tagged(draw: random.Random) -> dict[str, Any]:
    """2 to 40 words with tags: longer texts are cut into parts."""
    words = draw.choices(WORDS, k=draw.randint(2, 40))
    return {"tokens": words, "tags": ["B-sign" if WORDS.index(word) % 3 == 0 else "O" for word in words]}


def paired(draw: random.Random) -> dict[str, Any]:
    """A query of 1 to 4 words of a document of 2 to 16."""
    words = draw.choices(WORDS, k=draw.randint(2, 16))
    return {"term": " ".join(draw.choices(words, k=draw.randint(1, 4))), "definition": " ".join(words)}


def answered(draw: random.Random) -> dict[str, Any]:
    """A question of 1 to 6 words with an answer of 1 to 20: some are longer than what a model reads."""
    first = draw.randrange(20)
    answer = [WORDS[(first + index) % 20] for index in range(draw.randint(1, 20))]
    return {
        "question": " ".join([*draw.choices(WORDS, k=draw.randint(0, 5)), WORDS[first]]),
        "answer": " ".join(answer),
    }


_IMAGES = Recipe(
    "driving_images",
    None,
    ImageClassification,
    "AutoModelForImageClassification",
    3,
    {"task": "classification"},
    has_checkpointing=False,
)
RECIPES = (
    Recipe("clinical_classification", classified, TextClassification, "AutoModelForSequenceClassification", 3, {}),
    Recipe("medical_mlm", classified, MaskedTexts, "AutoModelForMaskedLM", None, {"mlm_probability": 0.3}),
    Recipe(
        "medical_lm",
        answered,
        CausalTexts,
        "AutoModelForCausalLM",
        None,
        {"prompt_column": "question", "response_column": "answer", "num_samples": 1},
        "llama",
        AutoModelForCausalLM,
    ),
    Recipe("clinical_ner", tagged, EntityTagging, "AutoModelForTokenClassification", 3, {"overlap": 4}),
    Recipe("term_retrieval", paired, TextRetrieval, "AutoModel", None, {}),
    _IMAGES,
    replace(_IMAGES, task=SemanticSegmentation, num_labels=4, flags={"task": "segmentation"}, is_second_task=True),
)


def run_of(recipe_id: str, folder: Path, output: Path | None = None, **flags: Any) -> Path:
    """A run of three steps by a recipe of this id, in `folder`/run or in `output`."""
    (recipe,) = (recipe for recipe in RECIPES if recipe.id == recipe_id)
    output = output or folder / "run"
    how = {"max_steps": 3, "learning_rate": 0.01, "micro_batch_size": 4} | flags
    importlib.import_module(f"recipes.{recipe.name}").main(recipe.make_flags(folder, output, **how))
    return output
