"""The house: imports point one way, `accelerate` stays where devices and ranks are, importing is quick."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up. A module imports from its own layer's left and from layers below, never from above.
LAYERS = [
    [
        "seeding",
        "files",
        "errors",
        "manifest",
        "training_state",
        "units",
        "host",
        "quantization",
        "secrecy",
        "rules",
        "lora_config",
        "doors",
        "pooling",
        "word_tokens",
        "arguments",
        "dropout_masks",
        "fused_lora",
    ],
    [
        "losses",
        "dataset_files",
        "row_files",
        "retries",
        "image_folder",
        "source",
        "order",
        "ranks",
        "prefetch",
        "oom",
        "ending",
        "config",
        "memory",
        "capacity",
        "stopwatch",
        "costs",
        "cutting",
    ],
    [
        "budget",
        "prediction",
        "prober",
        "tuner",
        "plan",
        "plan_picture",
        "window",
        "labels",
        "survey",
        "heads",
        "models",
        "optimization",
        "batch_norm",
        "images",
        "augmentation",
        "segmenter",
    ],
    [
        "text",
        "split_data",
        "labelled_texts",
        "tagged_texts",
        "plain_texts",
        "text_pairs",
        "passages",
        "chat",
        "instructions",
        "image_data",
        "image_inputs",
        "adapters",
        "trainable",
        "agreement",
        "balance",
        "stream",
        "pipeline",
        "tuning",
        "guard",
        "stopping",
    ],
    ["accumulation", "evaluation"],
    [
        "classification",
        "tagging",
        "language",
        "perplexity",
        "masking",
        "contrastive",
        "retrieval",
        "causal",
        "samples",
        "image_classification",
        "segmentation",
        "tracking",
        "checkpoint",
        "resume",
        "run_folder",
        "summary",
        "training",
        "cli",
    ],
]
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}
MAY_IMPORT_ACCELERATE = {"accumulation", "ranks", "tracking", "summary"}
LIBRARY = sorted((ROOT / "hf_accum").glob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "hf_accum"}
    return found


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in LIBRARY} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", [p for p in LIBRARY if p.stem != "__init__"], ids=lambda p: p.stem)
def test_imports_point_down(path: Path) -> None:
    modules = {name.split(".")[1] for name in imported(path) if name.startswith("hf_accum.")}
    above = {module for module in modules if LEVEL[module] > LEVEL[path.stem]}
    beside = {m for m in modules if LEVEL[m] == LEVEL[path.stem] and m != path.stem}
    layer = LAYERS[LEVEL[path.stem]]
    assert not above
    assert all(layer.index(module) < layer.index(path.stem) for module in beside)
    assert not any(name.split(".")[0] == "recipes" for name in imported(path))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_accelerate_appears_where_devices_or_ranks_do(path: Path) -> None:
    if path.stem not in MAY_IMPORT_ACCELERATE:
        assert not any(name.split(".")[0] == "accelerate" for name in imported(path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_no_recipe_imports_a_recipe(path: Path) -> None:
    recipes = {f"recipes.{p.stem}" for p in (ROOT / "recipes").glob("*.py") if p.stem != "__init__"}
    assert not recipes & imported(path)
    assert not any(name.split(".")[0] == "tests" for name in imported(path))


@pytest.mark.parametrize("path", LIBRARY + RECIPES, ids=lambda p: p.stem)
def test_a_module_stays_small(path: Path) -> None:
    # A recipe holds its flags and its loop, to be read from top to bottom in one place.
    limit = 425 if path in RECIPES else 350
    assert len(path.read_text().splitlines()) <= limit


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, hf_accum; print([m for m in ('torch', 'transformers', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    import hf_accum

    for name in hf_accum.__all__:
        assert getattr(hf_accum, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = hf_accum.no_such_thing
