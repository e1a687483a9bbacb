"""What recipes/README.md says: a row for every recipe, and a recipe in 60 lines that runs."""

import json
import random
import re
import shlex
from pathlib import Path

import pytest
from every_recipe import RECIPES
from launching import launch
from recipe_configs import config_class_of
from run_files import metrics_of
from tiny import WORDS, make_tokenizer, save_base

from hf_accum.cli.main import main as hf_accum
from hf_accum.cli.parser import parse

README = (Path(__file__).parents[2] / "recipes" / "README.md").read_text()
COLUMNS = 10


def test_every_recipe_has_a_row_without_gaps() -> None:
    header, _, *rows = [line for line in README.splitlines() if line.startswith("|")]
    assert len(header.strip("|").split("|")) == COLUMNS
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert sorted(row[0].strip("`") for row in cells) == sorted({recipe.name for recipe in RECIPES})
    for row in cells:
        assert len(row) == COLUMNS
        assert all(row), row
        assert f"recipes.{row[0].strip('`')}" in row[5] or row[5] == "its defaults", row[5]
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", row[-1]), row[-1]


def test_the_flags_of_every_command_are_real() -> None:
    commands = re.findall(r"`recipes\.(\w+)((?: [^`]*)?)`", README)
    assert {name for name, _ in commands} == {recipe.name for recipe in RECIPES}
    for name, flags in commands:
        parse(config_class_of(name), "", shlex.split(flags))  # ends the process where one is not


@pytest.mark.slow
def test_the_recipe_in_60_lines_runs_and_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 60
    (tmp_path / "triage.py").write_text(code)
    draw = random.Random(0)
    rows = []
    for _ in range(60):
        label = draw.randrange(2)
        note = " ".join(draw.choices(WORDS[label::2], k=draw.randint(2, 9)))
        rows.append(json.dumps({"note": note, "urgency": ("low", "high")[label]}) + "\n")
    rows[3:3] = ['{"urgency": "low"}\n', '{"note": null, "urgency": "low"}\n']
    (tmp_path / "notes.jsonl").write_text("".join(rows))
    model = save_base(tmp_path / "model", "bert", make_tokenizer())
    flags = [f"--model={model}", "--max_length=12", "--effective_batch_size=8", "--learning_rate=0.01"]
    run = [f"--dataset={tmp_path / 'notes.jsonl'}", f"--output_dir={tmp_path / 'run'}", "--num_epochs=4"]
    run += ["--on_bad_row=skip"]
    done = launch(str(tmp_path / "triage.py"), *flags, *run, "--dropout=0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("left out: 1 bad rows (field 'note'") == 2
    losses = [line["loss"] for line in metrics_of(tmp_path / "run")]
    assert losses[-1] < losses[0]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    hf_accum(["plan", "triage", *flags, "--memory", "1GiB", "--variants", "lora"])
    assert "LoRA" in capsys.readouterr().out
