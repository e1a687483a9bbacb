"""A configuration as YAML: read back the same."""

from pathlib import Path

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hf_accum.cli.parser import parse
from hf_accum.config.lora import LoraConfig
from hf_accum.config.serialization import as_dict, write_config
from recipes.clinical_classification import ClinicalClassificationConfig

MULTI = "multi_label_classification"


def parse_flags(*arguments: str) -> ClinicalClassificationConfig:
    return parse(ClinicalClassificationConfig, "A recipe.", list(arguments))


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
