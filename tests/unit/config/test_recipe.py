"""Flags: each rule refuses what breaks it, YAML and flags together, and nothing heavy imported for it."""

import dataclasses
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hf_accum.byte_sizes import parse_bytes
from hf_accum.cli.exit import run
from hf_accum.cli.parser import parse
from hf_accum.config.recipe import LoraConfig, RecipeConfig, require
from hf_accum.config.serialization import as_dict, write_config
from hf_accum.config.trust import Doors
from hf_accum.errors import Stopped, UserError
from recipes.clinical_classification import ClinicalClassificationConfig

MULTI = "multi_label_classification"
AT_LEAST_1 = ("effective_batch_size", "shuffle_block_size", "log_every", "max_nonfinite_skips")
AT_LEAST_1_OR_NULL = ("max_steps", "num_epochs", "eval_every", "save_every", "early_stopping_patience")

# What is given, the flag that is refused for it, and the rule that is said. `best_metric` and `eval_every` go
# with what needs them.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    *(({name: value}, name, "at least 1") for name in AT_LEAST_1 for value in (0, -3)),
    *(
        ({"best_metric": "loss", "eval_every": 5} | {name: value}, name, "at least 1, or null")
        for name in AT_LEAST_1_OR_NULL
        for value in (0, -1)
    ),
    ({"num_epochs": None}, "num_epochs", "a number where max_steps is null"),
    ({"full_determinism": True}, "full_determinism", "false with `micro_batch_size auto`"),
    *(({"micro_batch_size": value}, "micro_batch_size", "auto, or at least 1") for value in (0, -3)),
    *(({"memory_budget": value}, "memory_budget", "auto, or bytes as 6GiB") for value in ("0", "6 apples", "-1GiB")),
    *(({name: 10**10}, name, "at most 1,000,000,000") for name in (*AT_LEAST_1, "max_length", "micro_batch_size")),
    *(
        ({"best_metric": "loss", "eval_every": 5} | {name: 10**10}, name, "at most 1,000,000,000")
        for name in AT_LEAST_1_OR_NULL
    ),
    *(
        ({name: ""}, name, "left out, or not empty")
        for name in ("model", "dataset", "output_dir", "revision", "dataset_revision")
    ),
    ({"code_revision": "main"}, "code_revision", "left out without `trust_remote_code`"),
    ({"learning_rate": 1e3}, "learning_rate", "at most 100"),
    ({"max_grad_norm": 1e-300}, "max_grad_norm", "at least 1e-12"),
    ({"weight_decay": 5000.0}, "weight_decay", "below 1 / learning_rate (3333.33"),
    ({"max_length": 1}, "max_length", "at least 2"),
    *(
        ({name: value}, name, "a finite number above 0")
        for name in ("learning_rate", "max_grad_norm", "max_minutes", "rank_timeout_minutes", "max_probe_seconds")
        for value in (0.0, -1e-4, math.inf, math.nan)
    ),
    *(({"weight_decay": v}, "weight_decay", "a finite number, at least 0") for v in (-0.1, math.inf, math.nan)),
    *(({"warmup_ratio": value}, "warmup_ratio", "in [0, 1]") for value in (-0.1, 1.1, math.nan)),
    *(({"dropout": value}, "dropout", "in [0, 1)") for value in (-0.1, 1.0, math.nan)),
    ({"early_stopping_patience": 2}, "early_stopping_patience", "null without best_metric"),
    ({"best_metric": "loss"}, "best_metric", "null without eval_every"),
    ({"lora": {"rank": -1}}, "lora.rank", "at least 0 (0: full fine-tuning)"),
    ({"lora": {"rank": 10**6}}, "lora.rank", "at most 65,536"),
    *(({"lora": {"alpha": value}}, "lora.alpha", "above 0") for value in (0.0, -1.0, 1e7, math.inf, math.nan)),
    *(({"lora": {"dropout": value}}, "lora.dropout", "in [0, 1)") for value in (-0.1, 1.0, math.nan)),
    *(({"lora": {"target_modules": v}}, "lora.target_modules", "not empty") for v in ([], "")),
    *(({"lora": {"target_modules": v}}, "lora.target_modules", "names of modules, or") for v in ("[", "((", "*")),
]
TWO = {"labels": ["a", "b"]}
REFUSED_BY_THE_RECIPE: list[tuple[dict[str, Any], str, str]] = [
    *(({"label_smoothing": value}, "label_smoothing", "in [0, 1)") for value in (-0.1, 1.0, math.nan)),
    *(({"eval_fraction": value}, "eval_fraction", "between 0 and 1") for value in (0.0, 1.0, -0.5, math.nan)),
    ({"label_separator": ""}, "label_separator", "not empty"),
    ({"labels": ["a", "b", "a"]}, "labels", "all different"),
    ({"labels": ["a"]}, "labels", "at least 2 names"),
    ({"problem": MULTI, "class_weights": "balanced"}, "class_weights", f"none for {MULTI}"),
    ({"problem": "regression", "class_weights": "balanced"}, "class_weights", "none for regression"),
    ({"problem": MULTI, "label_smoothing": 0.1}, "label_smoothing", f"0 for {MULTI}"),
    ({"positive_weights": [1.0, 2.0]} | TWO, "positive_weights", "empty for single_label_classification"),
    ({"problem": "regression"} | TWO, "labels", "empty for regression"),
    ({"class_weights": [1.0, 2.0]}, "class_weights", "given together with `labels`"),
    ({"class_weights": []}, "class_weights", "given together with `labels`"),
    ({"class_weights": []} | TWO, "class_weights", "one for each of the 2 labels"),
    ({"class_weights": [1.0]} | TWO, "class_weights", "one for each of the 2 labels"),
    *(
        ({"class_weights": [1.0, value]} | TWO, "class_weights", "finite and above 0")
        for value in (0.0, -1.0, math.inf, math.nan)
    ),
    ({"problem": MULTI, "positive_weights": [1.0]}, "positive_weights", "given together with `labels`"),
    ({"problem": MULTI, "positive_weights": [1.0]} | TWO, "positive_weights", "one for each of the 2 labels"),
    ({"problem": MULTI, "positive_weights": [1.0, 0.0]} | TWO, "positive_weights", "finite and above 0"),
]


def refused_value(given_values: dict[str, Any], flag: str) -> Any:
    value: Any = given_values
    for part in flag.split("."):
        value = value[part]
    return repr(value) if flag == "label_separator" or (value == "" and "." not in flag) else value


def construct(config_class: type[RecipeConfig], values: dict[str, Any]) -> RecipeConfig:
    lora: dict[str, Any] = {"lora": LoraConfig(**values["lora"])} if "lora" in values else {}
    return config_class(**(values | lora))


@pytest.mark.parametrize(("values", "flag", "rule"), REFUSED)
def test_each_shared_rule_names_flag_value_and_itself(values: dict[str, Any], flag: str, rule: str) -> None:
    said = f"`{flag}` {refused_value(values, flag)}: has to be {rule}"
    for config_class in (RecipeConfig, ClinicalClassificationConfig):
        with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
            construct(config_class, values)


@pytest.mark.parametrize(("values", "flag", "rule"), REFUSED_BY_THE_RECIPE)
def test_each_rule_of_the_recipe_names_flag_value_and_itself(values: dict[str, Any], flag: str, rule: str) -> None:
    said = f"`{flag}` {refused_value(values, flag)}: has to be {rule}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        construct(ClinicalClassificationConfig, values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        dict.fromkeys(AT_LEAST_1, 1),
        dict.fromkeys(AT_LEAST_1_OR_NULL, 1) | {"best_metric": "loss"},
        {"max_steps": 1, "num_epochs": None},
        {"max_length": 2, "weight_decay": 0.0, "dropout": 0.0},
        {"warmup_ratio": 0.0, "lora": {"rank": 0, "alpha": 0.1, "dropout": 0.0, "target_modules": ["q"]}},
        {"warmup_ratio": 1.0, "dropout": 0.99},
        {"class_weights": [0.5, 2.0], "label_smoothing": 0.5, "labels": ["a", "b"]},
        {"class_weights": "balanced"},
        {"problem": MULTI, "positive_weights": [0.5, 2.0], "labels": ["a", "b"]},
        {"problem": "regression", "eval_fraction": 0.01},
    ],
)
def test_what_keeps_to_the_rules_is_taken(values: dict[str, Any]) -> None:
    config = construct(ClinicalClassificationConfig, values)
    expected = as_dict(ClinicalClassificationConfig()) | values
    assert as_dict(config) == expected | {
        "lora": as_dict(ClinicalClassificationConfig())["lora"] | values.get("lora", {})
    }


def test_require_says_nothing_of_what_holds() -> None:
    require(True, "seed", 1, "anything")
    with pytest.raises(ValueError, match=r"^`seed` 1: has to be 2$"):
        require(False, "seed", 1, "2")


# The command line


def parse_flags(*arguments: str) -> ClinicalClassificationConfig:
    return parse(ClinicalClassificationConfig, "A recipe.", list(arguments))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_flags(*arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_without_flags_everything_is_the_default() -> None:
    assert parse_flags() == ClinicalClassificationConfig()


def test_flags_are_read_by_their_types() -> None:
    config = parse_flags(
        *("--model", "some/model", "--max_steps", "7", "--num_epochs", "null", "--learning_rate", "1e-5"),
        *("--lora.rank", "4", "--lora.target_modules", "[query, value]", "--gradient_checkpointing", "true"),
        *("--labels", "[mild, severe]", "--class_weights", "[0.5, 2]", "--lr_scheduler", "cosine"),
    )
    assert config == ClinicalClassificationConfig(
        model="some/model",
        max_steps=7,
        num_epochs=None,
        learning_rate=1e-5,
        lora=LoraConfig(rank=4, target_modules=["query", "value"]),
        gradient_checkpointing=True,
        labels=["mild", "severe"],
        class_weights=[0.5, 2.0],
        lr_scheduler="cosine",
    )


@pytest.mark.parametrize("written", ["6442450944", "6GiB", "'6442450944'"])
def test_a_budget_may_be_a_number_in_yaml(tmp_path: Path, written: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"memory_budget: {written}\n")
    assert parse_bytes(parse_flags("--config", str(file)).memory_budget) == 6 * 2**30


def test_a_switch_may_stand_alone() -> None:
    config = parse_flags("--debug", "--trust_remote_code", "--allow_pickle_weights", "false", "--seed", "3")
    assert (config.debug, config.trust_remote_code, config.allow_pickle_weights) == (True, True, False)
    assert parse_flags("--seed", "3", "--debug").debug
    assert not parse_flags("--debug=false", "--trust_remote_code").debug
    assert not parse_flags("--text_column", "debug").debug


def test_what_may_come_in_with_a_model_is_nothing_by_default() -> None:
    assert ClinicalClassificationConfig().doors == Doors(None, False, None, False)
    config = parse_flags(
        "--revision", "abc", "--trust_remote_code", "--code_revision", "def", "--allow_pickle_weights"
    )
    assert config.doors == Doors("abc", True, "def", True)


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
@pytest.mark.parametrize("flag", ["model", "output_dir", "text_column", "trackers", "labels"])
def test_texts_that_cannot_be_written_down_are_refused(flag: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^`{flag}` '.*': has to be (UTF-8|without NUL characters)$"):
        ClinicalClassificationConfig(**{flag: [value, "b"] if flag in ("trackers", "labels") else value})  # type: ignore[arg-type]


def test_flags_stand_above_the_yaml_file_whatever_their_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 5\nmax_length: 128\nlora:\n  rank: 4\n  alpha: 8\n")
    config = parse_flags("--config", str(file), "--max_length", "64", "--lora.rank", "2")
    assert (config.seed, config.max_length, config.lora) == (5, 64, LoraConfig(rank=2, alpha=8.0))
    assert config == dataclasses.replace(
        ClinicalClassificationConfig(), seed=5, max_length=64, lora=LoraConfig(rank=2, alpha=8.0)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max_length", "1"), "error: --max_length 1: has to be at least 2"),
        (("--lora.rank", "-1"), "error: --lora.rank -1: has to be at least 0"),
        (("--labels", "[a, a]"), "error: --labels ['a', 'a']: has to be all different"),
        (("--batch_size", "8"), "--batch_size"),
        (("--max_len", "8"), "unrecognized arguments: --max_len 8"),  # no abbreviations
        (("--lora.r", "8"), "unrecognized arguments: --lora.r 8"),
        (("--seed", "one"), "\"seed\":\n  Expected a <class 'int'>. Got value: one"),
        (("--max_length", "12.5"), '"max_length"'),
        (("--micro_batch_size", "true"), '"micro_batch_size"'),
        (("--learning_rate", "high"), '"learning_rate"'),
        (("--gradient_checkpointing", "perhaps"), '"gradient_checkpointing"'),
        (("--on_bad_row", "ignore"), '"on_bad_row"'),
        (("--lr_scheduler", "steep"), '"lr_scheduler"'),
        (("--config", "missing.yaml"), "missing.yaml'"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2_and_one_message(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_length: 1\n", "error: --max_length 1: has to be at least 2"),
        ("lora:\n  rank: -1\n", "error: --lora.rank -1: has to be at least 0"),
        ("batch_size: 8\n", "batch_size"),
        ("seed: one\n", '"seed"'),
        ("", "mine.yaml: has to hold flags, as `max_steps: 100`, one a line"),
        ("- seed\n- 1\n", "mine.yaml: has to hold flags"),
        ("seed\n", "mine.yaml: has to hold flags"),
        ("lora: null\n", "mine.yaml: has to have the flags of lora below it"),
        ("lora: 4\n", "mine.yaml: has to have the flags of lora below it"),
        ("config: mine.yaml\n", "Config file loop detected"),
        ("seed: [\n", "Problems parsing config"),
        ("labels: " + "[" * 5000 + "\n", "Problems parsing config"),
        ("model: !!python/object/apply:os.getcwd []\n", "could not determine a constructor for the tag"),
        ("model: caf\udce9\n", "mine.yaml: has to be UTF-8"),
    ],
)
def test_a_wrong_yaml_file_ends_with_status_2_and_one_message(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    for arguments in (("--config", str(file)), (f"--config={file}", "--seed", "1")):
        assert said in refused(capsys, *arguments)


# Texts that YAML has other ideas about, and any other.
awkward = [
    "yes",
    "no",
    "null",
    "~",
    "1",
    "012",
    "1e-4",
    "0e0",
    "-7E+3",
    "[a]",
    "{a}",
    "#",
    "|",
    "*",
    "&a",
    "!a",
    "?",
    "-",
    "true",
    "0x1",
    "1_0",
    "1:30",
    "2001-01-01",
    ".inf",
    "a:",
]
strings = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), min_size=1) | st.sampled_from(
    (*awkward, "a: b", "a #b", " a ", "'", '"', "\u00e9")
)
names = st.from_regex("[a-zA-Z./_-]+", fullmatch=True).filter(lambda name: yaml.safe_load(name) == name)
positive = st.floats(min_value=1e-300, max_value=90)
configs = st.builds(
    ClinicalClassificationConfig,
    model=st.none() | names,
    output_dir=strings,
    seed=st.integers(),
    max_steps=st.none() | st.integers(1, 10**9),
    max_minutes=st.none() | positive,
    max_probe_seconds=st.none() | positive,
    learning_rate=positive,
    dropout=st.none() | st.floats(0, 1, exclude_max=True),
    lora=st.builds(
        LoraConfig,
        rank=st.integers(0, 65_536),
        alpha=positive,
        target_modules=names | st.just(".*([qkv]_proj|query)") | st.lists(strings, min_size=1, max_size=3),
    ),
    gradient_checkpointing=st.booleans(),
    stream_split=st.sampled_from(("examples", "shards")),
    eval_every=st.just(3),
    best_metric=st.none() | names,
    trackers=st.lists(strings, max_size=2),
    labels=st.lists(strings, min_size=2, max_size=4, unique=True),
    label_separator=strings,
    text_column=strings,
)


@settings(max_examples=25, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking takes minutes
@given(configs)
def test_config_yaml_gives_back_the_same_configuration(
    tmp_path_factory: pytest.TempPathFactory, config: ClinicalClassificationConfig
) -> None:
    folder = tmp_path_factory.mktemp("run")
    write_config(config, folder)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == as_dict(config)
    assert parse_flags("--config", str(folder / "config.yaml")) == config


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--seed", "3", "--max_steps", "9", "--num_epochs", "null", "--learning_rate", "3e-5"),
        ("--lora.rank", "0", "--lora.target_modules", "[query, 'null']", "--label_separator", "; "),
        (
            "--labels",
            "['yes', 'no', '1', '1e5']",
            "--class_weights",
            "[1, 2.5, 1e-3, 1e3]",
            "--trackers",
            "[wandb]",
        ),
        ("--problem", MULTI, "--text_column", "a: b", "--dropout", "0", "--lora.target_modules", ".*proj"),
    ],
)
def test_what_print_config_prints_is_read_back_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_flags(*arguments, "--print_config")
    assert ended.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse_flags("--config", str(file)) == parse_flags(*arguments)


def test_every_flag_of_the_contract_that_is_built_is_there_with_its_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_flags("--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    contract = (
        "model dataset output_dir seed max_steps num_epochs effective_batch_size micro_batch_size memory_budget "
        "max_length learning_rate weight_decay warmup_ratio max_grad_norm lr_scheduler dropout lora.rank lora.alpha "
        "lora.dropout lora.target_modules gradient_checkpointing save_every eval_every log_every"
    )
    for flag in contract.split():
        assert re.search(rf"^ +--{re.escape(flag)} ", said, re.MULTILINE), flag
    for field in dataclasses.fields(ClinicalClassificationConfig):
        assert re.search(rf"^ +--{field.name}\b", said, re.MULTILINE), field.name
    for sentence in (
        "Examples per optimizer step, all ranks together.",
        "Column with the text.",
        "A recipe.",
    ):
        assert sentence in " ".join(said.split())


def test_a_user_s_mistake_while_running_is_one_message_and_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        raise UserError("notes.csv, row 7: field 'label': missing")

    with pytest.raises(SystemExit) as ended:
        run(work)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: notes.csv, row 7: field 'label': missing\n"


def test_a_run_that_was_stopped_ends_with_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise Stopped("stopped by SIGTERM")

    with pytest.raises(SystemExit) as ended:
        run(work)
    assert ended.value.code == os.EX_TEMPFAIL == 75
    assert capsys.readouterr().err == ""  # the log has said it


def test_nothing_heavy_is_imported_for_the_command_line() -> None:
    """Not by `import hf_accum`, not for help, a configuration or a wrong flag."""
    code = """
import sys
import hf_accum
from recipes.clinical_classification import main
for arguments in (["--help"], ["--print_config"], ["--max_length", "1"], ["--unheard_of", "1"]):
    try:
        main(arguments)
    except SystemExit as ended:
        print(arguments[0], "ended with", ended.code, file=sys.stderr)
heavy = {"torch", "transformers", "accelerate", "peft", "datasets", "numpy", "sklearn", "pyarrow"}
print("heavy:", sorted(heavy & set(sys.modules)), file=sys.stderr)
hf_accum.cut
assert "torch" in sys.modules, "the oracle is blind"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for arguments, status in (("--help", 0), ("--print_config", 0), ("--max_length", 2), ("--unheard_of", 2)):
        assert f"{arguments} ended with {status}" in done.stderr
    assert "heavy: []" in done.stderr


def test_the_package_gives_each_piece_by_name_and_nothing_else() -> None:
    import hf_accum

    for name in hf_accum.__all__:
        assert getattr(hf_accum, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = hf_accum.Trainer  # type: ignore[attr-defined]


def test_memory_that_runs_out_outside_of_the_micro_batches_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    def optimizer_step() -> None:
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(SystemExit) as ended:
        run(optimizer_step)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: memory ran out outside of the micro-batches, as in the optimizer's step (Runtime")

    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(SystemExit) as ended:
        run(broken)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(
        "error: RuntimeError: mat1 and mat2 shapes cannot be multiplied (nothing"
    )
