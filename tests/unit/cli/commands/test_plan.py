"""The command `hf-accum plan`: its tables, pictures and messages."""

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from launching import run
from plan_cases import MAX_LENGTH, flags_of, save_config

from hf_accum.accumulation.capacity import Capacity, Peak
from hf_accum.byte_sizes import format_bytes, parse_bytes
from hf_accum.cli.main import main
from hf_accum.config.lora import LoraConfig
from hf_accum.tuner.kernels import workspace_bytes
from hf_accum.tuner.plan import Variant, plan
from hf_accum.tuner.prediction import Prediction
from hf_accum.tuner.probes import Probe
from hf_accum.tuner.run_capacity import tuning_json
from hf_accum.tuner.tracing import FixedBytes
from hf_accum.tuner.tuning import Tuning
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


def of_card(name: str, *more: str, model: str = "m", variants: str = "lora,qlora") -> list[str]:
    flags = flags_of(model, "--gpu", name, *more, variants=variants)
    place = flags.index("--memory")
    return flags[:place] + flags[place + 2 :]


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
    assert "They count the bytes of tensors: a GPU needs some hundred MiB more" in output


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


@pytest.mark.parametrize("flag", ["--picture", "--json"])
@pytest.mark.parametrize(
    ("name", "why"), [("missing/plan.svg", "in a folder that is there"), ("folder.svg", "a file, it is a folder")]
)
def test_a_file_that_cannot_be_is_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, name: str, why: str
) -> None:
    (tmp_path / "folder.svg").mkdir()
    said = refused(capsys, *flags_of("missing", flag, str(tmp_path / name)))
    assert said == f"error: {flag} {tmp_path / name}: has to be {why}\n"


@pytest.mark.slow
def test_cards_are_planned_and_written_for_programs(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one precision that all of them compute in; the file says what the tables do."""
    file = tmp_path / "plan.json"
    file.write_text("an earlier one")
    main(of_card("rtx3060 12 GiB, T4", "--json", str(file), model=model, variants="lora"))
    output = capsys.readouterr().out
    assert output.endswith(f"written: {file}\n")
    assert list(tmp_path.iterdir()) == [file]
    assert re.search(r"^RTX 3060 12GB: compute capability 8\.6, 12\.00 GiB, of which .* 11\.00 GiB ", output, re.M)
    assert re.search(r"^T4: compute capability 7\.5, 16\.00 GiB, of which the plan uses 14\.67 GiB ", output, re.M)
    assert "of one rank, in mixed precision (fp16), from a trace" in output
    assert "with the kernels of CUDA for compute capability 7.5." in output  # the older one's, which need most
    assert re.search(r"card +┃ training +┃ 64 +┃ 32 +┃", output)

    written = json.loads(file.read_text())
    assert (written["recipe"], written["model"], written["precision"]) == ("clinical_classification", model, "fp16")
    config = ClinicalClassificationConfig(model=model, max_length=MAX_LENGTH, lora=LoraConfig())
    budgets = {"RTX 3060 12GB": 11 * 2**30, "T4": 16 * 2**30 * 11 // 12}
    (variant,), _ = plan(lambda config: workload(config, "fp16"), config, ["lora"], (7, 5), list(budgets.values()))
    assert "count what CUDA's allocator would hold" in output
    assert [(memory["name"], memory["budget_bytes"]) for memory in written["memory"]] == [*budgets.items()]
    of = written["variants"]["lora"]
    assert [(row["memory"], row["length"], row["num_examples"]) for row in of["largest"]] == [
        (name, length, variant.largest(length, budget, MOST) or None)
        for name, budget in budgets.items()
        for length in (64, 32)
    ]
    assert of["one_example"]["needed_bytes"] == variant.needed_bytes(1, MAX_LENGTH)
    assert of["one_example"]["needed_bytes"] != variants_of(model)["LoRA"].needed_bytes(1, MAX_LENGTH)  # in float32
    assert rows_of(output) == rows_written(written)
    assert of["one_example"]["reserved_bytes"] > of["one_example"]["needed_bytes"]


@pytest.mark.slow
def test_beside_an_older_card_a_newer_one_keeps_its_workspaces(model: str, tmp_path: Path) -> None:
    reserved = []
    for cards in ("RTX 3060 12GB", "RTX 3060 12GB,RTX 5060"):
        file = tmp_path / "plan.json"
        main(of_card(cards, "--json", str(file), model=model, variants="lora"))
        reserved.append(json.loads(file.read_text())["variants"]["lora"]["one_example"]["reserved_bytes"])
    assert reserved[1] - reserved[0] == workspace_bytes((12, 0)) - workspace_bytes((8, 6))


@pytest.mark.slow
def test_real_lengths_are_replayed_over_their_windows(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths, file = tmp_path / "lengths.txt", tmp_path / "plan.json"
    lengths.write_text("\n".join(str(8 + 7 * (number % 9)) for number in range(300)) + "\n500\n")
    more = ("--lengths", str(lengths), "--effective_batch_size", "64", "--json", str(file))
    main(of_card("T4", *more, model=model, variants="lora"))
    output = capsys.readouterr().out
    assert f"1 of 301 lengths are longer than {MAX_LENGTH}, and cut off there" in output
    assert "what the allocator holds over 5 windows of real lengths" in output
    (row,) = json.loads(file.read_text())["variants"]["lora"]["over_windows"]
    assert (row["memory"], row["num_windows"]) == ("T4", 5)
    first, last = row["reserved_after_first_bytes"], row["reserved_after_last_bytes"]
    assert 0 < first <= last < 2**30
    assert re.search(rf"│ T4 +│ LoRA +│ {format_bytes(first)} +│ {format_bytes(last)} +│ \d%", output)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--memory", "8GiB"), "has to go with a card, by --gpu or --capability"),
        (("--gpu", "T4"), "line 1: 'a' has to be a number of tokens, from 1 on"),
    ],
)
def test_lengths_that_cannot_be_are_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, str], message: str
) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(SystemExit) as ended:
        main(["plan", "clinical_classification", "--model", model, *flags, "--lengths", str(tmp_path / "a.txt")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "--lengths" in error
    assert message in error


def test_images_have_no_lengths_to_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = sizes | {"model_type": "vit", "image_size": 32, "patch_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "lengths.txt").write_text("3\n")
    flags = ["--model", str(tmp_path), "--resolution", "32", "--gpu", "T4", "--variants", "lora"]
    with pytest.raises(SystemExit) as ended:
        main(["plan", "driving_images", *flags, "--lengths", str(tmp_path / "lengths.txt")])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --lengths: has to be left out, as all examples have 4 patches\n"


def rows_written(written: dict[str, Any]) -> list[list[str]]:
    """The rows of both tables, from the file alone."""
    variants = list(written["variants"].values())
    most, rows = written["most_examples"], []
    for place, memory in enumerate(written["memory"]):
        for index, of in enumerate(variants):
            num_lengths = len(written["lengths"])
            numbers = [row["num_examples"] for row in of["largest"][place * num_lengths :][:num_lengths]]
            shown = ["-" if number is None else f"{most}+" if number == most else str(number) for number in numbers]
            rows.append([memory["name"] if index == 0 else "", of["name"], *shown])
    ones = [of["one_example"] for of in variants]
    rows += [
        [part.replace("_", " "), *(format_bytes(one["parts_bytes"][part]) for one in ones)]
        for part in ones[0]["parts_bytes"]
    ]
    of_card = ["reserved"] if "reserved_bytes" in ones[0] else []
    for total in (*of_card, "peak", "each further one", "optimizer step", "evaluation"):
        key = f"{total.replace(' ', '_')}_bytes"
        assert all(isinstance(one[key], int) for one in ones)
        rows.append([total, *(format_bytes(one[key]) for one in ones)])
    return rows


@pytest.fixture
def made_up_plan(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In the place of a plan one that is not traced: the precisions of the workloads that were built for it."""
    asked: list[str] = []

    def plan(build: Any, config: Any, chosen: Any, capability: Any, budgets: list[int], *_: Any) -> Any:
        assert all(budget > 0 for budget in budgets)
        assert budgets
        asked.append(build(config).precision)
        peak = Peak(((100.0, 10.0),), MAX_LENGTH)
        fixed = FixedBytes(weights=50, gradients=20, optimizer_state=30, optimizer_peak=180)
        return [Variant("LoRA", Prediction(peak, peak, peak, fixed, []), MAX_LENGTH)], []

    monkeypatch.setattr("hf_accum.tuner.plan.plan", plan)
    return asked


@pytest.mark.parametrize(
    ("flags", "precision", "words"),
    [
        (["--capability", "8.6"], "bf16", "mixed precision (bf16)"),
        (["--capability", "7.5"], "fp16", "mixed precision (fp16)"),
        (["--capability", "8.6", "--precision", "no"], "no", "float32"),
        (["--precision", "bf16"], "bf16", "mixed precision (bf16)"),
        ([], "no", "float32"),
    ],
)
def test_the_precision_is_that_of_the_capability_or_the_flag(
    model: str,
    tmp_path: Path,
    made_up_plan: list[str],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    precision: str,
    words: str,
) -> None:
    """Planned with it, and told: in the last sentence and in the file."""
    file = tmp_path / "plan.json"
    main(flags_of(model, *flags, "--json", str(file), variants="lora"))
    assert made_up_plan == [precision]
    assert f"of one rank, in {words}, from a trace" in capsys.readouterr().out
    assert json.loads(file.read_text())["precision"] == precision


def test_what_a_run_measured_is_shown(
    model: str, tmp_path: Path, made_up_plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert len(made_up_plan) == 2


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
        (flags_of("m", "--capability", "86"), "error: --capability '86': has to be a compute capability, as 8.6"),
        (flags_of("m", "--gpu", "T4"), "error: --memory 64MiB,1GiB: has to be left out with --gpu T4, which says it"),
        (of_card("T4", "--capability", "7.5"), "error: --capability 7.5: has to be left out with --gpu T4, which"),
        (of_card("RTX 3060"), "error: --gpu 'RTX 3060': has to say which one it is: RTX 3060 8GB, RTX 3060 12GB"),
        (of_card("T4,"), "error: --gpu '': has to be a card that is known by name; any other is planned by its"),
        (of_card("RTX 9090"), "as --memory 8GiB and --capability 8.6"),
        (of_card("A10, T4", "--precision", "bf16"), "error: --precision bf16: has to be fp16 or no on T4 (7.5): "),
        (flags_of("m", "--precision", "fp8"), "error: --precision fp8: has to be of no,bf16,fp16"),
        (flags_of("m", "--lora.rank", "-1"), "error: --lora.rank -1: has to be at least 0"),
        (flags_of("m", "--max_length", "1"), "error: --max_length 1: has to be at least 2"),
        (flags_of("m", "--max_length", "many"), '"max_length"'),
        (flags_of("m", "--unheard_of", "1"), "--unheard_of"),
        (flags_of("m", "--label_smoothing", "2"), "error: --label_smoothing 2.0: has to be in [0, 1)"),
        (flags_of("m", "--json"), "error: argument --json: expected one argument\n(--help lists all flags)\n"),
        (["plan"], "error: the following arguments are required: recipe"),
        (["unheard_of"], "invalid choice: 'unheard_of'"),
        ([], "error: the following arguments are required: COMMAND"),
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
    if "." in name:  # the same plan once more

        def planned_already(build: Any, config: Any, chosen: list[str], *_: Any) -> Any:
            found: dict[str, Variant] = dict(zip(("lora", "qlora"), variants_of(model).values(), strict=True))
            return [found[key] for key in chosen if build(config).model], []

        monkeypatch.setattr("hf_accum.tuner.plan.plan", planned_already)
    arguments = flags_of(model, "--times", "3")
    arguments[1] = name
    main(arguments)
    output = capsys.readouterr().out
    assert output.startswith(f"planning {name} for {model}\n")
    assert f"\nexamples of up to {MAX_LENGTH} tokens\n" in output
    assert output.count("rank 16 times 3\n") == 2
    check_tables(output, model, ("64MiB", "1GiB"))


@pytest.mark.parametrize(
    ("flags", "signature", "said"),
    [
        (
            ["--precision", "fp16"],
            "config: MyConfig",
            "has to take a precision too, `workload(config, precision)`, to be",
        ),
        (["--capability", "8.6"], "config: MyConfig", "or plan it in float32, by --precision no"),
        (["--precision", "bf16"], "config: MyConfig, precision", "has to hand its precision on, to `planned`"),
        (["--capability", "8.6", "--precision", "no"], "config: MyConfig", None),
        ([], "config: MyConfig, precision", None),
    ],
)
def test_a_recipe_of_one_s_own_has_to_take_the_precision(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    signature: str,
    said: str | None,
) -> None:
    """Where one is asked for, or follows from the card; in float32 it may do without."""
    name = tmp_path.name  # of each case another: a module stays imported
    (tmp_path / f"{name}.py").write_text(OWN.replace("config: MyConfig", signature))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = flags_of(model, *flags, variants="lora")
    arguments[1] = name
    if said is None:
        built = request.getfixturevalue("made_up_plan")
        main(arguments)
        assert built == ["no"]
        assert "of one rank, in float32, from a trace" in capsys.readouterr().out
    else:
        told = refused(capsys, *arguments)
        assert told.startswith(f"error: {name}: its function `workload")
        assert said in told


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


@pytest.mark.slow
def test_nothing_is_cut_off_in_a_narrow_terminal(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "46")
    main(flags_of(model, variants="lora,qlora_checkpointing"))
    said = capsys.readouterr().out
    assert "…" not in said
    names = [row[0] for row in rows_of(said)]
    for name in ("gradients", "optimizer state", "activations", "temporaries", "each further one"):
        assert name in names
