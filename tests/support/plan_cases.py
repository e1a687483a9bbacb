"""Plans of a model that has a config and nothing else."""

from pathlib import Path

from transformers import BertConfig

MAX_LENGTH = 64


def save_config(folder: Path) -> str:
    """A folder with nothing but a config: no weights, no tokenizer."""
    BertConfig(
        vocab_size=1000,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
    ).save_pretrained(folder)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    return str(folder)


def flags_of(model: str, *more: str, memory: str = "64MiB,1GiB", variants: str = "lora,qlora") -> list[str]:
    how = ["--memory", memory, "--variants", variants, "--max_length", str(MAX_LENGTH)]
    return ["plan", "clinical_classification", "--model", model, *how, *more]
