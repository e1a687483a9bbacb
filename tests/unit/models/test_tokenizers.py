"""A model's tokenizer: it is there, and can pad."""

import json
from pathlib import Path

import pytest
from tiny import (
    ARCHITECTURES,
    CONFIGS,
    load_classifier,
    make_tokenizer,
    save_base,
)
from transformers import (
    AutoModel,
)

from hf_accum.models.tokenizers import load_tokenizer


def test_a_tokenizer_without_padding_pads_with_the_end_of_text(tmp_path: Path) -> None:
    """As Llama's. The model is told, for it looks for the last token that is no padding."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    folder = save_base(tmp_path, "llama", tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    assert load_tokenizer(folder).pad_token_id == 3
    model = load_classifier(folder).model
    assert model.config.pad_token_id == 3


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "biogpt"])
def test_a_folder_without_a_tokenizer(tmp_path: Path, architecture: str) -> None:
    """transformers would make one that knows no word, and every text would be the same to the model."""
    AutoModel.from_config(CONFIGS[architecture]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"^`model` {tmp_path}: has to (be .* with a tokenizer to|have the files)"):
        load_tokenizer(str(tmp_path))
