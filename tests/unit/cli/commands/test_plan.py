"""The command `hf-accum plan`: its tables, pictures and messages."""

import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from launching import run
from plan_cases import MAX_LENGTH, flags_of, save_config

from hf_accum.accumulation.capacity import Capacity
from hf_accum.byte_sizes import format_bytes, parse_bytes
from hf_accum.cli.main import main
from hf_accum.config.lora import LoraConfig
from hf_accum.tuner.plan import Variant, plan
from hf_accum.tuner.probes import Probe
from hf_accum.tuner.run_capacity import tuning_json
from hf_accum.tuner.search import Tuning
from recipes.clinical_classification import ClinicalClassificationConfig, workload

pytestmark = pytest.mark.usefixtures("no_network")

MOST = 4096  # the largest number that is shown


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_config(tmp_path_factory.mktemp("model"))


@cache
def variants_of(model: str) -> dict[str, Variant]:
    config = ClinicalClassificationConfig(model=model, max_length=MAX_LENGTH, lora=LoraConfig())
    found, _ = plan(workload, config, ["lora", "qlora"])
    return {variant.name: variant for variant in found}


def rows_of(output: str) -> list[list[str]]:
    """The cells of all tables' rows, without what is drawn around them."""
    return [[cell.strip() for cell in line.strip("│┃").split("│")] for line in output.splitlines() if "│" in line]


def check_tables(output: str, model: str, budgets: tuple[str, ...]) -> None:
    variants = variants_of(model)
    expected = []
    for budget in map(parse_bytes, budgets):
        for index, (name, variant) in enumerate(variants.items()):
            numbers = [variant.largest(length, budget, MOST) for length in (64, 32)]
            shown = ["-" if number == 0 else f"{MOST}+" if number == MOST else str(number) for number in numbers]
            expected.append([format_bytes(budget) if index == 0 else "", name, *shown])
    parts = [variant.parts(1, MAX_LENGTH) for variant in variants.values()]
    expected += [[name, *(format_bytes(of[name]) for of in parts)] for name in parts[0]]
    predictions = [variant.prediction for variant in variants.values()]
    further = [p.training.bytes_at(11, MAX_LENGTH) - p.training.bytes_at(10, MAX_LENGTH) for p in predictions]
    evaluation = [p.evaluation.bytes_at(1, MAX_LENGTH) for p in predictions]
    expected += [
        ["peak", *(format_bytes(variant.needed_bytes(1, MAX_LENGTH)) for variant in variants.values())],
        ["each further one", *map(format_bytes, further)],
        ["optimizer step", *(format_bytes(p.fixed.optimizer_peak) for p in predictions)],
        ["evaluation", *map(format_bytes, evaluation)],
    ]
    assert rows_of(output) == expected


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one message with which a command ends."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.err.count("error: ") == 1
    assert "│" not in said.out
    return said.err


@pytest.mark.slow
def test_the_tables_have_the_numbers_of_the_plan(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what does not fit, and what is beyond the largest number."""
    budgets = ("3MiB", "64MiB", "1GiB", "40GiB")
    main(flags_of(model, memory=",".join(budgets)))
    output = capsys.readouterr().out
    check_tables(output, model, budgets)
    assert {"-", f"{MOST}+"} < {cell for row in rows_of(output) for cell in row}
    assert output.startswith(f"planning clinical_classification for {model}\nexamples of up to {MAX_LENGTH} tokens\n")
    assert re.search(r"memory +┃ training +┃ 64 +┃ 32 +┃", output)
    assert "These numbers are predicted: bytes of tensors" in output


@pytest.mark.slow
def test_the_command_plans_from_any_folder(model: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("hf-accum")), *flags_of(model)]
    done = run(command, cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    check_tables(done.stdout, model, ("64MiB", "1GiB"))
    assert "Traceback" not in done.stderr


def test_what_cannot_be_is_said(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"model_type": "mpnet", "max_position_embeddings": MAX_LENGTH + 2}  # two stand for no position
    (tmp_path / "config.json").write_text(json.dumps(json.loads((Path(model) / "config.json").read_text()) | other))
    main(flags_of(str(tmp_path), "--quantization", "nf4", variants="full,full_checkpointing,lora_checkpointing"))
    output = capsys.readouterr().out
    why = "--gradient_checkpointing true: MPNetForSequenceClassification"
    assert f"left out: full + checkpointing, LoRA + checkpointing: {why}" in output
    assert "--quantization nf4 says nothing here" in output
    assert "--lora.rank" not in output
    assert {row[1] for row in rows_of(output) if row[0].endswith("iB")} == {"full"}


@pytest.mark.parametrize("name", ["plan.jpg", "plan", "plan.SVG", ".svg", "plan.svg.txt"])
def test_a_picture_of_another_kind_is_refused_before_anything_is_done(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    said = refused(capsys, *flags_of("missing", "--picture", name))
    assert said == f"error: --picture {name}: has to end in .svg or .png\n"


def test_a_picture_where_no_folder_is_is_refused_in_one_message(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "missing" / "plan.svg"
    with pytest.raises(SystemExit) as ended:
        main(flags_of(model, "--picture", str(file), variants="lora"))
    assert ended.value.code == 2
    assert f"--picture {file}: " in capsys.readouterr().err


def test_what_a_run_measured_is_shown(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probes = (Probe(4, 64, 7 * 2**20, 9 * 2**20, True), Probe(77, 32, 3 * 2**30, None, False))
    tuning = Tuning(Capacity(4), "NVIDIA Whatever", 2 * 2**30, 64, probes, 1.1, 5.0, 1.5)
    file = tmp_path / "tuning.json"
    for ranks in ([tuning], [tuning, tuning]):
        file.write_text(json.dumps(tuning_json(ranks)))
        main(flags_of(model, "--verified", str(file), variants="lora"))
        output = capsys.readouterr().out
        assert rows_of(output)[-2:] == [
            ["4", "64", "7 MiB", "9 MiB"],
            ["77", "32", "3.00 GiB", "did not fit"],
        ]
        assert "on NVIDIA Whatever, 2.00 GiB" in " ".join(output.split())


@pytest.mark.parametrize(
    "content",
    [
        *(None, "", "{", "[]", "{}", "3", "null", '{"budget_bytes": 1, "device": "x"}'),
        '{"budget_bytes": "many", "device": "x", "probes": []}',
        '{"budget_bytes": 1, "device": "x", "probes": null}',
        '{"budget_bytes": 1, "device": "x", "probes": [1]}',
        '{"budget_bytes": 1, "device": "x", "probes": [{"num_examples": 3}]}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_tuning_json_is_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes | None
) -> None:
    file = tmp_path / "tuning.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused(capsys, *flags_of("missing", "--verified", str(file)))
    assert said.startswith(f"error: --verified {file}: has to be the tuning.json of a run (")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "unheard_of"], "error: unheard_of: no recipe of that name, nor a module with a function"),
        (["plan", "a.b.c"], "error: a.b.c: no recipe of that name"),
        (["plan", "json"], "error: json: no recipe of that name"),
        (flags_of("m", variants="lora,dora"), "error: --variants dora: has to be of full,full_checkpointing,lora,"),
        (flags_of("m", variants=""), "error: --variants : has to be of"),
        (flags_of("m", memory="8GiB,many"), "'many': has to be bytes, as 6GiB"),
        (flags_of("m", memory="8GiB,"), "'': has to be bytes, as 6GiB"),
        (flags_of("m", memory="0"), "'0': has to be bytes, as 6GiB"),
        (flags_of("m", "--lora.rank", "-1"), "error: --lora.rank -1: has to be at least 0"),
        (flags_of("m", "--max_length", "1"), "error: --max_length 1: has to be at least 2"),
        (flags_of("m", "--max_length", "many"), '"max_length"'),
        (flags_of("m", "--unheard_of", "1"), "--unheard_of"),
        (flags_of("m", "--label_smoothing", "2"), "error: --label_smoothing 2.0: has to be in [0, 1)"),
        (["plan"], "the following arguments are required: recipe"),
        (["unheard_of"], "invalid choice: 'unheard_of'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refused(capsys, *arguments)


def test_a_model_without_config_is_one_message_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = refused(capsys, *flags_of(str(tmp_path), variants="lora"))
    assert f"--model {tmp_path}: has to be a local folder" in said


OWN = """
from dataclasses import dataclass, replace

from recipes.clinical_classification import ClinicalClassificationConfig
from recipes.clinical_classification import workload as clinical


@dataclass(frozen=True, kw_only=True)
class MyConfig(ClinicalClassificationConfig):
    \"\"\"Flags.\"\"\"

    times: int = 1
    \"\"\"How often.\"\"\"


def workload(config: MyConfig):
    print("rank", config.lora.rank, "times", config.times)
    return clinical(config)
"""


@pytest.mark.parametrize("name", ["mine_in_a_file", "mine_in.a_folder"])
def test_a_recipe_of_one_s_own_is_planned(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = tmp_path / f"{name.replace('.', '/')}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = flags_of(model, "--times", "3")
    arguments[1] = name
    main(arguments)
    output = capsys.readouterr().out
    assert output.startswith(f"planning {name} for {model}\n")
    assert f"\nexamples of up to {MAX_LENGTH} tokens\n" in output
    assert output.count("rank 16 times 3\n") == 2
    check_tables(output, model, ("64MiB", "1GiB"))


def test_a_recipe_of_one_s_own_that_fails_to_import_keeps_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_of_mine.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        main(["plan", "broken_of_mine", "--debug"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert 'broken_of_mine.py", line 1' in said
    assert said.splitlines()[-1] == "error: ModuleNotFoundError: No module named 'not_there_at_all'"
