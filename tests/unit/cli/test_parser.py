"""The command line: YAML and flags together, one message for a mistake, and nothing heavy imported for it."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_accum.byte_sizes import parse_bytes
from hf_accum.cli.parser import parse
from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig, flags_by_heading
from hf_accum.config.trust import Trust
from recipes.clinical_classification import ClinicalClassificationConfig
from recipes.driving_images import DrivingImagesConfig


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


def test_a_model_is_not_trusted_by_default() -> None:
    assert parse_flags().trust == Trust(None, False, None, False)
    config = parse_flags(
        "--revision", "abc", "--trust_remote_code", "--code_revision", "def", "--allow_pickle_weights"
    )
    assert config.trust == Trust("abc", True, "def", True)


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
hf_accum.accumulate
assert "torch" in sys.modules, "the oracle is blind"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for arguments, status in (("--help", 0), ("--print_config", 0), ("--max_length", 2), ("--unheard_of", 2)):
        assert f"{arguments} ended with {status}" in done.stderr
    assert "heavy: []" in done.stderr


def help_of(config_class: type[RecipeConfig], capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The flags that `--help` shows below each heading, in order."""
    with pytest.raises(SystemExit) as ended:
        parse(config_class, "A recipe.", ["--help"])
    assert ended.value.code == 0
    _, *sections = re.split(r"^(\S.*):\n", capsys.readouterr().out.split("\noptions:\n")[1], flags=re.MULTILINE)
    return {
        heading: re.findall(r"^  --([\w.]+)", text, re.MULTILINE)
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
    }


@pytest.mark.parametrize("config_class", [RecipeConfig, ClinicalClassificationConfig, DrivingImagesConfig])
def test_help_shows_the_flags_below_the_headings_of_their_subjects(
    config_class: type[RecipeConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of(config_class, capsys)
    lora = ["lora", "lora.rank", "lora.alpha", "lora.dropout", "lora.target_modules"]
    expected = {heading: names for heading, names in flags_by_heading(config_class).items() if names}
    assert shown == expected | {"LoRA": lora}
    assert list(shown) == list(expected)


def test_help_has_a_recipe_s_own_defaults_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(DrivingImagesConfig, "A recipe.", ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Says nothing here: --resolution does. (type: int, default: 512)" in said
    assert "Images per optimizer step, all ranks together. (type: int, default: 8)" in said
    assert "LoRA: Of convolutions that learn something new within a hundred steps;" in said
    assert "multiplied by alpha / rank. (type: float, default: 256.0)" in said


def test_a_flag_that_is_gone_is_told_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("seed: 1\nfast_kernels: true\n")
    said = refused(capsys, "--config", str(file))
    assert f"error: --config {file}: has to be without `fast_kernels`, leave it out: the kernels" in said
    for arguments in (("--fast_kernels", "false"), ("--fast_kernels=true",), ("--fast_kernels",)):
        assert "error: --fast_kernels: has to be left out: the kernels" in refused(capsys, *arguments)


def test_a_flag_that_is_gone_may_be_a_recipe_s_own() -> None:
    assert parse(OwnFastKernels, "", ["--fast_kernels", "3"]).fast_kernels == 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnFastKernels(RecipeConfig):
    fast_kernels: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextAnnotations(RecipeConfig):
    """As `from __future__ import annotations` makes them."""

    switch: "bool" = False
    steps: "int" = 1


def test_a_switch_is_one_where_annotations_are_texts() -> None:
    config = parse(TextAnnotations, "", ["--switch", "--steps", "3"])
    assert (config.switch, config.steps) == (True, 3)
