"""What every recipe promises: its flags, its shape, the same run however windows are cut, and after a kill."""

import ast
import importlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from every_recipe import RECIPES, Recipe
from huggingface_hub import ModelCard
from launching import launch
from plain_peft import load_adapter
from run_files import metrics_of
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification, AutoTokenizer

from hf_accum.config.recipe import RecipeConfig
from hf_accum.models.usage import read_usage
from hf_accum.tasks.vision.segmenter import SemanticSegmenter

ROOT = Path(__file__).parents[2]
FAULTY = str(Path(__file__).with_name("faulty_recipe.py"))
SEVERAL = str(Path(__file__).with_name("several_recipes.py"))
Run = Callable[..., Path]
for_each = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.id)
FIRST = RECIPES[0]  # whose own tests go further: test_invariance, test_resume
# Those that differ most from each other and from the first, whose main job is cut in test_invariance.
DIFFERENT = ("term_retrieval", "driving_images-classification")


def marked(in_default: tuple[str, ...], in_slow: tuple[str, ...]) -> list[Any]:
    """All recipes; those that are named nowhere are left for by hand: they go through the same code."""
    marks: dict[str, Any] = dict.fromkeys(in_slow, pytest.mark.slow) | dict.fromkeys(in_default, ())
    return [pytest.param(r, id=r.id, marks=marks.get(r.id, pytest.mark.by_hand)) for r in RECIPES]


IN_SLOW = (
    "driving_images-classification",
    "term_retrieval",
    "medical_lm",
    "clinical_ner",
    "medical_mlm",
)
for_each_cut = pytest.mark.parametrize("recipe", marked((), IN_SLOW))
for_each_killed = pytest.mark.parametrize("recipe", [p for p in marked((), DIFFERENT) if p.id != FIRST.id])


@pytest.fixture
def run_here(tmp_path: Path, accelerator: object) -> Run:
    """Run a recipe in this process, on a model and rows that are in `folder`; returns the run's folder."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    runs = iter(range(100))

    def run(recipe: Recipe, **more: Any) -> Path:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        output = tmp_path / f"run-{next(runs)}"
        flags = recipe.make_flags(more.pop("folder", tmp_path), output, **more)
        importlib.import_module(f"recipes.{recipe.name}").main(flags)
        return output

    return run


def weights_of(run: Path) -> Path:
    """The file of a run's result: an adapter, or a whole model."""
    adapter = run / "adapter" / "adapter_model.safetensors"
    return adapter if adapter.exists() else run / "model" / "model.safetensors"


def assert_same_run(runs: list[Path]) -> None:
    """The same examples at each step, the same losses, adapters that differ by rounding."""
    first, *others = [(metrics_of(run), load_file(weights_of(run))) for run in runs]
    for lines, weights in others:
        for name in ("step", "epoch", "window_digest", "num_examples", "num_items", "num_tokens", "learning_rate"):
            assert [line[name] for line in lines] == [line[name] for line in first[0]], name
        for name in ("loss", "grad_norm"):
            expected = pytest.approx([line[name] for line in first[0]], rel=1e-4)
            assert [line[name] for line in lines] == expected, name
        assert weights.keys() == first[1].keys()
        for name, weight in weights.items():
            if name.endswith("key.bias"):
                continue  # it moves all scores of a query alike: its gradient is rounding, of which Adam makes steps
            torch.testing.assert_close(weight, first[1][name], rtol=1e-2, atol=1e-4)


def test_all_recipes_are_here() -> None:
    there = {path.stem for path in (ROOT / "recipes").glob("*.py")} - {"__init__"}
    assert there == {recipe.name for recipe in RECIPES}


@for_each
def test_it_has_the_shared_flags_and_the_same_shape(recipe: Recipe) -> None:
    """One class of flags, `train` with the loop in it, `workload` for plans, and a command line."""
    module = importlib.import_module(f"recipes.{recipe.name}")
    (config_class,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, RecipeConfig) and value is not RecipeConfig
    ]
    own = {field.name: field.type for field in fields(config_class)}
    for field in fields(RecipeConfig):
        assert own[field.name] == field.type, field.name
    for name in ("train", "workload", "main"):
        assert callable(getattr(module, name))
    tree = ast.parse(Path(str(module.__file__)).read_text())
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    main()"  # what `-m` runs
    (train,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train"]
    calls = {ast.unparse(node.func) for node in ast.walk(train) if isinstance(node, ast.Call)}
    for part in ("accelerator.backward", "accelerator.clip_grad_norm_", "optimizer.step", "training.step_done"):
        assert part in calls, f"the loop of {recipe.name} is not in its `train`: no {part}"


CUT: dict[str, Any] = {"dropout": 0, "max_steps": 5, "num_epochs": 2, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def on_two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes that are to be cut, one after the other in one launch of two processes: a folder of runs."""
    folder = tmp_path_factory.mktemp("two-ranks")
    test = test_it_trains_the_same_however_windows_are_cut.__name__
    items = [item for item in request.session.items if getattr(item, "originalname", None) == test]
    recipes: list[Recipe] = [item.callspec.params["recipe"] for item in items]  # type: ignore[attr-defined]
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in recipes]
        ports = [server.getsockname()[1] for server in sockets]
    flags = [r.make_flags(folder, folder / r.id, **CUT, micro_batch_size=3) for r in recipes]
    runs = [(r.name, of, port) for r, of, port in zip(recipes, flags, ports, strict=True)]
    (folder / "runs.json").write_text(json.dumps(runs))
    done = launch(SEVERAL, str(folder / "runs.json"), num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ranks      2 on cpu") == len(recipes)
    return folder


@for_each_cut
def test_it_trains_the_same_however_windows_are_cut(recipe: Recipe, run_here: Run, on_two_ranks: Path) -> None:
    how = {"folder": on_two_ranks, **CUT}
    runs = [run_here(recipe, **how, micro_batch_size=size) for size in (1, 16)]
    checkpointing = str(recipe.has_checkpointing).lower()
    runs.append(run_here(recipe, **how, micro_batch_size=3, gradient_checkpointing=checkpointing))
    runs.append(run_here(recipe, **how, micro_batch_size="auto", memory_budget="1GiB"))
    assert_same_run([*runs, on_two_ranks / recipe.id])


@for_each
def test_its_adapter_is_loaded_by_peft_alone(recipe: Recipe, run_here: Run, tmp_path: Path) -> None:
    adapter = run_here(recipe, max_steps=1, **{"lora.rank": 2}) / "adapter"
    base = tmp_path / f"{recipe.name}-model"
    auto_class = SemanticSegmenter if recipe.is_second_task else getattr(transformers, recipe.loaded_by)
    model = load_adapter(auto_class, adapter, base)
    if recipe.num_labels is not None:
        assert len(model.config.id2label) == recipe.num_labels
        assert not any(name.startswith("LABEL_") for name in model.config.id2label.values())
    for file in adapter.iterdir():  # of this machine
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    card = ModelCard.load(adapter / "README.md")
    assert card.data.pipeline_tag == read_usage(adapter).task  # type: ignore[union-attr]
    assert card.data["eval_results"]
    saved = load_file(Path(adapter) / "adapter_model.safetensors")
    loaded = peft.get_peft_model_state_dict(model, save_embedding_layers=False)  # else it asks for the base by name
    assert saved.keys() == loaded.keys()
    for name, weight in saved.items():
        assert torch.equal(weight, loaded[name]), name


RUN_EACH = """
import os, re, sys
for folder in sys.argv[1:]:
    os.environ["BASE"], folder = folder.split(",")
    os.chdir(folder)
    (code,) = re.findall(r"```python\\n(.*?)```", open("README.md").read(), re.S)
    before = set(sys.modules)
    exec(code, {})
    assert "segmenter" in code or not any(name.startswith("hf_accum") for name in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, 0])
def test_the_lines_of_its_readme_run_as_they_stand(run_here: Run, tmp_path: Path, rank: int) -> None:
    """In another process and the result's folder, moved away from the run; last that whose head is ours."""
    places = []
    for recipe in RECIPES:
        run = run_here(recipe, max_steps=1, **{"lora.rank": rank})
        moved = tmp_path / f"result-{recipe.id}"
        (run / ("adapter" if rank else "model")).rename(moved)
        places.append(f"{tmp_path / f'{recipe.name}-model'},{moved}")
    done = subprocess.run([sys.executable, "-c", RUN_EACH, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) >= len(RECIPES)
    assert any(name in done.stdout for name in ("eye", "heart", "muscle"))
    shares = ast.literal_eval(done.stdout.splitlines()[-1])  # of an image's pixels, by class
    assert sum(shares.values()) == pytest.approx(1)


@for_each_killed
def test_it_goes_on_after_a_kill_as_if_nothing_had_been(recipe: Recipe, run_here: Run, tmp_path: Path) -> None:
    """With the bits of a run that was not disturbed, in another process."""
    how = {"max_steps": 9, "num_epochs": "null", "save_every": 3, "dropout": 0.1, "full_determinism": "true"}
    killed = tmp_path / "killed"
    try:
        whole = run_here(recipe, **how)
    finally:
        torch.use_deterministic_algorithms(False)
    flags = recipe.make_flags(tmp_path, killed, **how)
    assert launch(FAULTY, "SIGKILL", "0", "6", *flags, FAULTY_RECIPE=recipe.name).returncode != 0
    done = launch("-m", f"recipes.{recipe.name}", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed    after step 3, from " in done.stdout
    for name in ("window_digest", "loss", "grad_norm"):
        assert [line[name] for line in metrics_of(killed)] == [line[name] for line in metrics_of(whole)], name
    assert weights_of(killed).read_bytes() == weights_of(whole).read_bytes()


def test_a_head_that_tells_the_same_tags_keeps_its_order(
    run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model that was trained elsewhere, where O need not be the first."""
    (recipe,) = [r for r in RECIPES if r.name == "clinical_ner"]
    run_here(recipe, max_steps=1)
    assert "new, without" in capsys.readouterr().out
    base = tmp_path / "clinical_ner-model"
    order = ["I-sign", "B-sign", "O"]
    names = {"id2label": dict(enumerate(order)), "label2id": {name: index for index, name in enumerate(order)}}
    AutoModelForTokenClassification.from_pretrained(base, **names).save_pretrained(tmp_path / "trained")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "trained")
    run = run_here(recipe, max_steps=1, model=tmp_path / "trained")
    assert "new, without" not in capsys.readouterr().out
    trained = load_file(tmp_path / "trained" / "model.safetensors")["classifier.weight"]
    (kept,) = [value for name, value in load_file(weights_of(run)).items() if name.endswith("classifier.weight")]
    torch.testing.assert_close(kept, trained, rtol=0, atol=1e-2)
