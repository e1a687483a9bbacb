"""The flags that every recipe shares: their names, types and defaults are a contract; each belongs to one subject."""

import dataclasses
from collections import Counter
from typing import Any, get_args

import pytest
from flags import Refused, check_refused

from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import SUBJECTS, RecipeConfig, flags_by_heading
from recipes.clinical_classification import ClinicalClassificationConfig

FLAGS = {
    "Model": """
        model: str | None = None
        revision: str | None = None
        trust_remote_code: bool = False
        code_revision: str | None = None
        init_from: str | None = None
        allow_pickle_weights: bool = False
        dropout: float | None = None
    """,
    "Data": """
        dataset: str | None = None
        mix_until: 'all_exhausted' | 'first_exhausted' = 'all_exhausted'
        dataset_revision: str | None = None
        dataset_config: str | None = None
        csv_quoting: 'auto' | 'standard' | 'backslash' | 'none' = 'auto'
        train_split: str = 'train'
        eval_split: str | None = None
        eval_fraction: float = 0.1
        group_column: str | None = None
        max_eval_examples: int | None = None
        max_length: int = 512
        shuffle_block_size: int = 10000
        stream_split: 'examples' | 'shards' = 'examples'
        on_bad_row: 'error' | 'skip' = 'error'
        max_skipped_share: float = 0.05
    """,
    "LoRA": """
        lora: LoraConfig = LoraConfig(rank=16, alpha=32.0, dropout=0.0, target_modules='all-linear')
    """,
    "Optimization": """
        max_steps: int | None = None
        num_epochs: int | None = 1
        effective_batch_size: int = 32
        optimizer: 'adamw' | 'adamw_8bit' | 'paged_adamw_8bit' = 'adamw'
        learning_rate: float | None = None
        learning_rate_head: float | None = None
        layerwise_lr_decay: float | None = None
        freeze_embeddings: bool = False
        lr_scheduler: 'linear' | 'cosine' | 'constant' | 'constant_with_warmup' | 'polynomial' | 'inverse_sqrt' = 'linear'
        warmup_ratio: float = 0.1
        weight_decay: float = 0.01
        max_grad_norm: float = 1.0
        on_nonfinite: 'stop' | 'skip' = 'stop'
        max_nonfinite_skips: int = 10
    """,  # noqa: E501
    "Memory and speed": """
        micro_batch_size: int | 'auto' = 'auto'
        memory_budget: str | int = 'auto'
        max_probe_seconds: float | None = 5.0
        gradient_checkpointing: bool | 'auto' = 'auto'
        quantization: 'none' | 'nf4' = 'none'
        frozen_dtype: 'auto' | 'float32' | 'bfloat16' | 'float16' = 'auto'
        activation_offload: bool = False
        balance_ranks: bool | 'auto' = 'auto'
    """,
    "Run and checkpoints": """
        preview: bool = False
        output_dir: str = 'runs/latest'
        seed: int = 0
        num_seeds: int = 1
        full_determinism: bool = False
        log_every: int = 10
        eval_every: int | None = None
        save_every: int | None = 100
        keep_checkpoints: int = 2
        best_metric: str | None = None
        early_stopping_patience: int | None = None
        resume: str = 'auto'
        allow_changes: list[str] | str = []
        allow_cut_dependence: bool = False
        max_minutes: float | None = None
        rank_timeout_minutes: float = 10.0
        trackers: list[str] | str = []
        debug: bool = False
    """,
}
"""Other people's scripts and YAML files rely on these. They change when an issue says so, and not otherwise."""

LORA = """
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] | str = 'all-linear'
"""


def words_of(annotation: Any) -> str:
    """A type as FLAGS has it."""
    if annotation is type(None):
        return "None"
    if isinstance(annotation, str):
        return repr(annotation)
    parts = get_args(annotation)
    if parts and annotation != list[str]:
        return " | ".join(words_of(part) for part in parts)
    return str(annotation) if parts else annotation.__name__


def flags_of(config_class: type) -> list[str]:
    default = config_class()
    fields = dataclasses.fields(config_class)
    return [f"{field.name}: {words_of(field.type)} = {getattr(default, field.name)!r}" for field in fields]


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def test_names_types_and_defaults_are_as_they_were() -> None:
    assert {heading: flags_of(subject) for heading, subject in SUBJECTS.items()} == {
        heading: lines_of(text) for heading, text in FLAGS.items()
    }
    assert flags_of(LoraConfig) == lines_of(LORA)


def test_a_configuration_has_the_flags_of_all_subjects_in_their_order() -> None:
    assert flags_of(RecipeConfig) == [line for text in FLAGS.values() for line in lines_of(text)]


@pytest.mark.parametrize("config_class", [RecipeConfig, ClinicalClassificationConfig])
def test_each_flag_is_below_one_heading(config_class: type[RecipeConfig]) -> None:
    below = flags_by_heading(config_class)
    assert list(below) == ["This recipe", *FLAGS]
    names = Counter(name for names in below.values() for name in names)
    assert names == Counter(field.name for field in dataclasses.fields(config_class))
    assert set(below["This recipe"]) == set(vars(config_class())) - set(vars(RecipeConfig()))


REFUSED: list[Refused] = [
    ({"full_determinism": True}, "full_determinism", "false with `micro_batch_size auto`"),
    ({"quantization": "nf4", "lora": {"rank": 0}}, "quantization", "none with `lora.rank 0`"),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_flags_of_two_subjects_go_together(refused: Refused) -> None:
    check_refused(refused)


def test_what_goes_together_is_taken() -> None:
    assert RecipeConfig(full_determinism=True, micro_batch_size=4).full_determinism
    assert RecipeConfig(quantization="nf4", lora=LoraConfig(rank=1)).quantization == "nf4"
    assert RecipeConfig(quantization="none", lora=LoraConfig(rank=0)).lora.rank == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnDefaults(RecipeConfig):
    """As recipes have them."""

    max_length: int = 64
    eval_fraction: float = 0.5


def test_a_recipe_s_own_default_keeps_the_rule() -> None:
    assert OwnDefaults().max_length == 64
    check_refused(({"max_length": 1}, "max_length", "at least 2"), OwnDefaults)
    check_refused(({"eval_fraction": 2}, "eval_fraction", "between 0 and 1"), OwnDefaults)
