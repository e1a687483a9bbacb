"""The house: rooms on floors, imports that point down; `accelerate` stays where devices and ranks are."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = sorted(path for path in (ROOT / "hf_accum").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))
MAP = (ROOT / "hf_accum" / "README.md").read_text()

LEAVES = {"byte_sizes", "durations", "errors", "files", "lazy", "seeding"}
"""Modules at the root of the package: they import nothing but each other."""

FLOORS = [
    {"config"},
    {"distributed", "device"},
    {"accumulation", "models"},
    {"data", "gradient_check", "report", "tuner"},
    {"evaluation"},
    {"tasks"},
    {"run"},
    {"cli"},
    {"recipe"},
]
"""The rooms from the ground floor up. A module imports from its own room, from floors below, and leaves."""

WITHOUT_TEST_FILE = {
    "accumulation/window": "a frozen dataclass: what runs it is tested",
    "config/variants": "a table of names",
    "data/file_shards": "tests/unit/data/test_source.py",
    "data/read_checks": "tests/unit/data/test_dataset_files.py",
    "data/loader_feed": "tests/unit/data/test_loader_windows.py",
    "data/windows_of": "tests/unit/data/test_loader_windows.py",
    "cli/commands/compare": "tests/recipes/test_compare_command.py",
    "cli/evaluation": "tests/recipes/test_evaluate_command.py",
    "cli/commands/evaluate": "tests/recipes/test_evaluate_command.py",
    "cli/commands/predict": "tests/recipes/test_predict_command.py",
    "cli/commands/merge": "tests/recipes/test_merge_command.py",
    "cli/merging": "tests/recipes/test_merge_command.py",
    "run/merge": "tests/recipes/test_merge_command.py",
    "cli/prediction": "tests/recipes/test_predict_command.py",
    **{
        f"cli/{module}": "tests/recipes/test_serve_command.py"
        for module in ("commands/serve", "serving/app", "serving/server")
    },
    **{
        f"cli/{module}": "tests/recipes/test_export_command.py"
        for module in ("commands/export", *(f"exporting/{name}" for name in ("folder", "graph", "lines", "session")))
    },
    "run/row_predictions": "tests/recipes/test_predict_command.py",
    "tasks/prediction": "a protocol",
    "tasks/causal_lm/generation": "tests/unit/tasks/causal_lm/test_samples.py",
    **{
        f"tasks/{task}/prediction": "tests/recipes/test_predict_command.py"
        for task in ("causal_lm", "retrieval", "text_classification", "token_classification", "vision")
    },
    "cli/handed_over": "tests/unit/cli/test_recipe_check.py",
    "run/shown_figures": "tests/unit/run/test_log.py",
    "run/training_stream": "tests/unit/run/test_training.py",
    "models/earlier_weights": "tests/recipes/test_retraining.py",
    "run/earlier_run": "tests/recipes/test_retraining.py",
    "models/spec": "a frozen dataclass",
    "tuner/tuning": "tests/unit/tuner/test_search.py",
    "recipe": "tests/unit/test_init.py",
    "run/facts": "tests/recipes/test_finished_run.py",
    "run/finished": "tests/recipes/test_finished_run.py",
    "tasks/classification_flags": "tests/recipes/test_clinical_classification_flags.py",
    "tasks/task": "a protocol",
    "evaluation/by_class": "tests/unit/evaluation/test_metrics.py",
    "evaluation/weighted": "tests/unit/evaluation/test_bootstrap.py",
    "evaluation/metrics/entities/entities": "tests/unit/evaluation/test_metrics.py",
    "evaluation/metrics/multi_label/multi_label": "tests/unit/evaluation/test_metrics.py",
    "evaluation/metrics/regression/regression": "tests/unit/evaluation/test_metrics.py",
    "evaluation/metrics/single_label/single_label": "tests/unit/evaluation/test_metrics.py",
}
"""Modules without a test file of their own: why, or which file tests them."""

ALONE = {"accumulation/accumulate", "accumulation/pair_cache", "data/windows_of", "evaluation/each_once"}
"""Modules that a loop of one's own on accelerate calls."""
MAY_IMPORT_ACCELERATE = {*ALONE, "distributed", "gradient_check/stock", "run/log", "run/trackers", "run/summary"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("hf_accum/").removesuffix("/__init__")


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module.startswith("hf_accum"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules_imported(path: Path) -> set[str]:
    """Of these the modules of this package, by their places in it."""
    names = {name_of(module) for module in LIBRARY}
    return {place for name in imported(path) if (place := "/".join(name.split(".")[1:])) in names} - {name_of(path)}


def floor_of(module: str) -> int:
    room = module.split("/")[0]
    return -1 if room in LEAVES else next(number for number, rooms in enumerate(FLOORS) if room in rooms)


MODULES = [path for path in LIBRARY if path != ROOT / "hf_accum" / "__init__.py"]


def test_every_module_is_in_a_room() -> None:
    places = {name_of(path).split("/")[0] for path in MODULES}
    assert places == LEAVES | set().union(*FLOORS)


def test_the_map_draws_every_room_on_its_floor() -> None:
    drawn = {int(n): set(rooms.split(", ")) for n, rooms in re.findall(r"^floor (\d) +(.*)$", MAP, re.MULTILINE)}
    assert drawn == dict(enumerate([LEAVES, *FLOORS]))


def test_the_map_says_of_every_room_what_it_may_import() -> None:
    rooms = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", MAP, re.MULTILINE))
    assert set(rooms) == set().union(*FLOORS)
    for room, below in rooms.items():
        floor = floor_of(room) + 1
        said = {"all below": floor, "floor 0": 1, "floors 0 and 1": 2}
        said |= {f"floors 0 to {highest}": highest + 1 for highest in range(2, 8)}
        assert said[below] == floor, f"{room} may import {below}"


def test_a_change_opens_at_most_four_files_and_they_exist() -> None:
    table = MAP.partition("| to change | open |")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if "](" in line]
    assert len(rows) == 9
    for row in rows:
        files = re.findall(r"\]\(([^)]+)\)", row)
        assert 1 <= len(files) <= 4, row
        assert [file for file in files if not (ROOT / "hf_accum" / file).is_file()] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    here = name_of(path)
    room, floor = here.split("/")[0], floor_of(here)
    for module in modules_imported(path):
        is_leaf = floor_of(module) == floor == -1
        assert floor_of(module) < floor or module.split("/")[0] == room or is_leaf, f"{here} imports {module}"
    assert not any(name.split(".")[0] in ("recipes", "tests") for name in imported(path))


def test_no_modules_import_each_other() -> None:
    TopologicalSorter({name_of(path): modules_imported(path) for path in MODULES}).prepare()  # raises for a circle


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_accelerate_appears_where_devices_or_ranks_do(path: Path) -> None:
    here = name_of(path)
    if here not in MAY_IMPORT_ACCELERATE and here.split("/")[0] not in MAY_IMPORT_ACCELERATE:
        assert not any(name.split(".")[0] == "accelerate" for name in imported(path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_no_recipe_imports_a_recipe(path: Path) -> None:
    recipes = {f"recipes.{p.stem}" for p in (ROOT / "recipes").glob("*.py") if p.stem != "__init__"}
    assert not recipes & imported(path)
    assert not any(name.split(".")[0] == "tests" for name in imported(path))


@pytest.mark.parametrize("path", LIBRARY + RECIPES, ids=name_of)
def test_a_module_stays_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


def test_every_module_has_its_test_file() -> None:
    modules = {name_of(path) for path in MODULES if path.stem != "__init__"}
    tested = {
        path.relative_to(ROOT / "tests" / "unit").with_name(path.stem.removeprefix("test_")).as_posix()
        for path in (ROOT / "tests" / "unit").rglob("test_*.py")
    }
    assert modules - tested == set(WITHOUT_TEST_FILE)
    assert tested - modules <= {"init", "rooms", "evaluation/metrics"}, "tests of a module that is not there"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, hf_accum; print([m for m in ('torch', 'transformers', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
