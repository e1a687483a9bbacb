"""Arguments in messages as flags: which are, which are not, and that the library's own messages have no flag."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.config.flags import as_flags, flag_names
from hf_accum.config.recipe import RecipeConfig
from recipes.clinical_classification import ClinicalClassificationConfig
from recipes.term_retrieval import TermRetrievalConfig

NAMES = {"max_length", "resume", "lora.rank", "model"}

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("`max_length` 600: has to be at most 512", "--max_length 600: has to be at most 512"),
        ("`lora.rank`", "--lora.rank"),
        ("give another `model`, or `resume never`: anew", "give another --model, or --resume never: anew"),
        ("`lora.rank 0` `max_length 8`:", "--lora.rank 0 --max_length 8:"),
        ("(`max_length`)\n  `lora.rank 4`: 3 examples", "(--max_length)\n  --lora.rank 4: 3 examples"),
        ("a ` alone, `model a/b-1.5`", "a ` alone, --model a/b-1.5"),
    ],
)
def test_arguments_are_flags_with_their_value(text: str, told: str) -> None:
    assert as_flags(text, NAMES) == told


@pytest.mark.parametrize(
    "text",
    [
        "`model.save_pretrained` writes them",
        "it has to have a `role` and a `content`",
        "by `hf auth login`",
        "`accelerate launch --multi_gpu --num_processes N`",
        "its function `workload(config)`",
        "as `max_length: 100`, one a line",
        "pass `max_length=None`",
        "`model of the hub`",
        "`model `",
        "` model`",
        "`resume\nnever`",
        "`models`",
        "`lora`",
        "model, max_length",
    ],
)
def test_what_is_no_argument_stays_as_it_is(text: str) -> None:
    assert as_flags(text, NAMES) == text


PIECES = st.sampled_from(["`", "`", " ", "\n", "--", ".", "model", "resume", "never", "lora.rank", "0", "é"])
TEXTS = st.text() | st.lists(PIECES).map("".join)


@given(TEXTS)
def test_a_text_without_backticks_stays_as_it_is(text: str) -> None:
    plain = text.replace("`", "'")
    assert as_flags(plain, NAMES) == plain


@given(TEXTS)
def test_no_argument_is_left_for_a_second_time(text: str) -> None:
    once = as_flags(text, NAMES)
    assert as_flags(once, NAMES) == once


@given(TEXTS)
def test_without_names_nothing_is_changed(text: str) -> None:
    assert as_flags(text, ()) == text


@given(TEXTS)
def test_only_backticks_go_and_only_dashes_come(text: str) -> None:
    told = as_flags(text, NAMES)
    assert re.sub("[`-]", "", told) == re.sub("[`-]", "", text)
    assert text.count("`") - told.count("`") == told.count("-") - text.count("-")  # two for two


def test_the_flags_of_a_recipe_are_the_shared_ones_its_own_and_those_of_groups() -> None:
    names = flag_names(ClinicalClassificationConfig)
    assert {"max_length", "lora.rank", "lora.target_modules", "labels", "class_weights"} <= names
    assert not {"rank", "temperature", "config", "doors"} & names


def test_the_flags_of_recipes_that_the_process_knows_are_known_without_one() -> None:
    assert flag_names() >= flag_names(ClinicalClassificationConfig) | flag_names(TermRetrievalConfig)

    @dataclass(frozen=True)
    class Group:
        depth: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Mine(RecipeConfig):
        of_mine: Group = field(default_factory=Group)

    assert flag_names(Mine) - flag_names(RecipeConfig) == set()
    assert {"of_mine", "of_mine.depth"} <= flag_names(Mine) - flag_names(TermRetrievalConfig)


# The messages of the library

NO_ARGUMENTS = (
    "accelerate launch --multi_gpu --num_processes N",
    "as it does with --cpu, use_cpu: true",
    "`config.yaml`, which `--config` reads back",
)
"""Of other programs, and of the command line alone."""

TRANSLATES = "config/flags.py"

FLAG = re.compile(r"(?<![\w-])--[a-z{]")


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """The text of each string of a module with its line, docstrings too; a value in an f-string as {}."""
    parts: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text())):  # a string before its parts
        if isinstance(node, ast.JoinedStr):
            parts |= set(node.values)
            yield node.lineno, "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.lineno, node.value


def flags_in(path: Path) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for line, text in texts_of(path):
        for known in NO_ARGUMENTS:
            text = text.replace(known, "")
        found += [(line, match.group()) for match in FLAG.finditer(text)]
    return found


LIBRARY = sorted((ROOT / "hf_accum").rglob("*.py"))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_the_command_line_speaks_of_flags(path: Path) -> None:
    place = path.relative_to(ROOT / "hf_accum")
    if place.parts[0] != "cli" and place.as_posix() != TRANSLATES:
        assert flags_in(path) == []


def test_flags_are_found_in_any_string(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text('"""Of `--seed`."""\n\nx = f"a {1} (--max_steps {2})"\ny = f"--{x}" "b"\nz = "m--a -- b-c"\n')
    assert flags_in(file) == [(1, "--s"), (3, "--m"), (4, "--{")]
