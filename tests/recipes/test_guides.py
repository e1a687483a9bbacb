"""What the README and the guides show: commands that parse, code that runs, links that lead somewhere."""

import ast
import dataclasses
import importlib
import json
import random
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from launching import ROOT, launch
from recipe_configs import config_class_of
from tiny import WORDS, make_tokenizer, save_base
from transformers import TrainingArguments

from hf_accum.cli.main import main as hf_accum
from hf_accum.cli.parser import parse
from hf_accum.config.recipe import RecipeConfig
from hf_accum.gradient_check.heads import HEADS
from recipes.clinical_classification import ClinicalClassificationConfig

GUIDES = [ROOT / "README.md", *sorted((ROOT / "recipes" / "guides").glob("*.md"))]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(
        path
        for folder in (".github", "hf_accum", "recipes", "tests")
        for path in sorted((ROOT / folder).rglob("*.md"))
    ),
]
MOVING = ROOT / "recipes" / "guides" / "moving-from-the-trainer.md"
RECIPES = {path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "__init__"}
ON_THE_WAY = {"curl", "pip", "export", "pytest", "ruff", "pyright", "pre-commit"}
"""Commands that are not looked into."""


def section(path: Path, title: str) -> str:
    """What stands below a heading of a document, up to the next one."""
    return path.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a document in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(path: Path) -> Iterator[list[str]]:
    """The commands in a document's bash blocks, each as its words."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield words[:end]
                words = words[end + 1 :]


def check_recipe(module: str, flags: list[str], path: Path, folder: Path) -> None:
    """The recipe is there, and its flags parse; what a document shows as a YAML file is one in the folder."""
    room, _, recipe = module.partition(".")
    assert room == "recipes"
    assert recipe in RECIPES
    for block in blocks(path, "yaml"):
        first = block.splitlines()[0]
        (folder / first.removeprefix("# ")).write_text(block)
    shown = {"--help", "--print_config"} & set(flags)
    if shown:
        with pytest.raises(SystemExit) as ended:
            parse(config_class_of(recipe), "", flags)
        assert ended.value.code == 0
    else:
        parse(config_class_of(recipe), "", flags)  # ends the process where a flag is none


def check_launch(arguments: list[str], path: Path, folder: Path) -> None:
    """The launcher takes its own arguments, and the recipe those that follow."""
    launched = launch_command_parser().parse_args(arguments)
    assert launched.config_file is None or (ROOT / launched.config_file).is_file(), launched.config_file
    if launched.module:
        check_recipe(launched.training_script, launched.training_script_args, path, folder)


def check_plan(arguments: list[str], path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options of `hf-accum plan` are its own, and the others flags of the recipe."""
    with pytest.raises(SystemExit):
        hf_accum(["plan", "--help"])
    own = set(re.findall(r"--\w+", capsys.readouterr().out))
    recipe, *options = arguments
    flags = []
    for option, value in zip(options[::2], options[1::2], strict=True):
        assert option.startswith("--")
        flags += [] if option in own else [option, value]
    check_recipe(f"recipes.{recipe}", flags, path, folder)


def check_check(arguments: list[str], path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options of `hf-accum check` are its own, and the others flags of the recipe."""
    with pytest.raises(SystemExit):
        hf_accum(["check", "--help"])
    own = set(re.findall(r"--\w+", capsys.readouterr().out))
    options = [word for word in arguments if word.startswith("--")]
    (what,) = [word for word in arguments[:1] if not word.startswith("--")] or [""]
    if what in RECIPES:
        flags = [word for word in arguments[1:] if word not in ("--made_up", "--strict")]
        check_recipe(f"recipes.{what}", flags, path, folder)
        return
    assert set(options) <= own, options
    if ":" in what:
        assert f"def {what.partition(':')[2]}(" in path.read_text()
    if "--head" in options:
        assert arguments[arguments.index("--head") + 1] in HEADS


def check_evaluate(arguments: list[str]) -> None:
    """What are no flags of the command are flags of a recipe."""
    given = {word.removeprefix("--") for word in arguments if word.startswith("--")}
    own = {"dataset", "split", "output", "recipe", "require", "max_new_tokens"}
    own |= {"int8", "host", "port", "max_request_bytes", "max_rows", "max_waiting", "timeout_seconds"}
    assert given - own <= {field.name for field in dataclasses.fields(ClinicalClassificationConfig)}, arguments


def check_own_flags(command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """All options are the command's own."""
    with pytest.raises(SystemExit):
        hf_accum([command, "--help"])
    own = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert {word for word in arguments if word.startswith("--")} <= own, arguments


def check(words: list[str], path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command of a document is one that there is."""
    match words:
        case ["srun", _, "accelerate", "launch", *arguments]:
            check_launch(arguments, path, folder)
        case ["accelerate", "launch", *arguments]:
            check_launch(arguments, path, folder)
        case ["python", "-m", module, *flags]:
            check_recipe(module, flags, path, folder)
        case ["hf-accum", "plan", *arguments]:
            check_plan(arguments, path, folder, capsys)
        case ["hf-accum", "check", *arguments]:
            check_check(arguments, path, folder, capsys)
        case ["hf-accum", "evaluate" | "compare" | "export" | "predict" | "serve", *arguments]:
            check_evaluate(arguments)
        case ["hf-accum", "merge" | "publish" | "report" as command, *arguments]:
            check_own_flags(command, arguments, capsys)
        case ["vllm", "serve", _] | ["python", "convert_hf_to_gguf.py", *_]:  # of others
            pass
        case ["python" | "bash", script, *_]:
            assert (ROOT / script).is_file(), script
        case [program, *_] if program in ON_THE_WAY:
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), words
        case _:
            pytest.fail(f"{name_of(path)} shows a command that no test knows: {shlex.join(words)}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_shown_is_real(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(path):
        check(words, path, tmp_path, capsys)


def test_a_wrong_flag_module_or_file_in_a_command_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        "accelerate launch -m recipes.clinical_classification --no_such_flag 1",
        "accelerate launch --no_such_option -m recipes.clinical_classification",
        "accelerate launch --config_file accelerate_configs/none.yaml -m recipes.clinical_classification",
        "python -m recipes.none",
        "python tests/bench/none.py",
        "hf-accum plan clinical_classification --no_such_flag 1",
        "hf-accum check clinical_classification --no_such_flag 1",
        "hf-accum report runs/latest --no_such_flag",
        "hf-accum check train:no_such_function",
        "hf-accum check --model m --head no_such_head",
        "pytest tests/none.py",
    ):
        with pytest.raises((SystemExit, AssertionError)):
            check(shlex.split(command), GUIDES[0], tmp_path, capsys)
    with pytest.raises(pytest.fail.Exception):
        check(["wget", "somewhere"], GUIDES[0], tmp_path, capsys)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_python_blocks_compile_and_import_what_there_is(path: Path) -> None:
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hf_accum":
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{node.module}: {missing}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_of_the_project_that_are_named_exist(path: Path) -> None:
    named = re.findall(
        r"(?<![\w/])(?:tests|hf_accum|recipes|accelerate_configs)/[\w/]+\.(?:py|md|yaml)", path.read_text()
    )
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_the_readme_is_short_enough_to_be_read_to_its_end() -> None:
    assert len((ROOT / "README.md").read_text()) <= 10_000


def test_the_readme_leads_to_every_guide() -> None:
    text = (ROOT / "README.md").read_text()
    assert [path.name for path in GUIDES[1:] if f"(recipes/guides/{path.name})" not in text] == []


def test_the_readme_shows_the_loop_that_the_main_recipe_runs() -> None:
    loop = blocks(ROOT / "README.md", "python")[0]
    recipe = (ROOT / "recipes" / "clinical_classification.py").read_text()
    code = [line.split("  #")[0].strip() for line in loop.splitlines()]
    assert len(code) == 11
    run = "\n".join(line.split("  #")[0].strip() for line in recipe.splitlines())
    assert "\n".join(code) in run


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_document_names_a_place_of_one_machine(path: Path) -> None:
    assert not re.findall(r"(?<![\w.])(?:/home/|/tmp/|/work/|/root/|/Users/|[A-Z]:\\)\S*", path.read_text())


def test_the_table_of_the_trainer_s_arguments_names_real_ones() -> None:
    """Each argument is one of transformers, each flag one of a recipe or of `accelerate launch`."""
    text = section(MOVING, "Flag by flag")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| `"]
    assert len(rows) > 30
    arguments = {field.name for field in dataclasses.fields(TrainingArguments)}
    flags = {f"--{field.name}" for recipe in RECIPES for field in dataclasses.fields(config_class_of(recipe))}
    launcher = {option for action in launch_command_parser()._actions for option in action.option_strings}
    for theirs, ours, _ in rows:
        named = re.findall(r"`(\w+)`", theirs)
        assert named
        assert set(named) <= arguments, theirs
        assert set(re.findall(r"--\w+", ours)) <= flags | launcher, ours


def test_what_follows_a_training_is_named_with_commands_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = re.findall(r"`(hf-accum [^`]+)`", section(MOVING, "After the training"))
    assert len(named) == 6
    for command in named:
        check(shlex.split(command), MOVING, tmp_path, capsys)


def test_the_flags_in_tables_are_those_of_a_recipe() -> None:
    flags = {f"--{field.name}" for recipe in RECIPES for field in dataclasses.fields(config_class_of(recipe))}
    lora = next(field for field in dataclasses.fields(RecipeConfig) if field.name == "lora")
    assert lora.default_factory is not dataclasses.MISSING
    flags |= {f"--lora.{field.name}" for field in dataclasses.fields(lora.default_factory())}
    for path in GUIDES:
        for line in path.read_text().splitlines():
            if line.startswith("| `--"):
                named = re.findall(r"`(--[\w.]+)", line.split("|")[1])
                assert set(named) <= flags, f"{name_of(path)}: {line}"


@pytest.mark.slow
def test_the_loop_of_ones_own_trains_on_ones_own_rows(tmp_path: Path) -> None:
    code = (ROOT / "recipes" / "guides" / "reuse" / "streamed.py").read_text()
    model = save_base(tmp_path / "model", "bert", make_tokenizer())
    draw = random.Random(0)
    rows = [
        {"text": " ".join(draw.choices(WORDS, k=draw.randint(2, 30))), "label": draw.randrange(2)} for _ in range(70)
    ]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = code.replace("emilyalsentzer/Bio_ClinicalBERT", str(model)).replace("max_length=512", "max_length=16")
    end = "print('losses', float(window.loss_sum()))\n"
    (tmp_path / "own.py").write_text(code.replace("    optimizer.step()\n", f"    optimizer.step()\n    {end}"))
    done = launch(str(tmp_path / "own.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("losses") == 3  # of 32, 32 and 6 rows


@pytest.mark.parametrize(("status", "decides"), [(0, True), (1, True), (1, False), (2, False)])
def test_the_script_of_the_cycle_puts_a_run_in_use_only_where_the_rule_is_kept(
    status: int, decides: bool, tmp_path: Path
) -> None:
    """And a comparison that failed is no refusal: whoever started the script is told."""
    (script,) = blocks(ROOT / "recipes" / "guides" / "retraining.md", "sh")
    (tmp_path / "retrain.sh").write_text(script)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "current").symlink_to("first")
    programs = tmp_path / "bin"  # stand-ins: what they are asked is checked above
    programs.mkdir()
    for name, line in {
        "accelerate": 'while [ "$1" != --output_dir ]; do shift; done; mkdir -p "$2"; echo "$2" > trained',
        "hf-accum": f"{'echo {} > ${@: -1}; ' if decides else ''}exit {status}",
    }.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "retrain.sh", "old", "new"], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode == 0) is decides, done.stderr
    trained = tmp_path / (tmp_path / "trained").read_text().strip()
    in_use = trained if status == 0 else tmp_path / "runs" / "first"
    assert (tmp_path / "runs" / "current").resolve() == in_use.resolve()
    if status == 0:  # a run that is in use is neither trained anew nor compared with itself
        (tmp_path / "trained").unlink()
        subprocess.run(["bash", "retrain.sh", "old", "new"], cwd=tmp_path, env=environment, check=True)
        assert not (tmp_path / "trained").exists()
