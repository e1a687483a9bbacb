"""A plan as a picture: written whole, with a line for each memory size."""

import socket
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import BertConfig

from hf_accum.cli.main import main

MAX_LENGTH = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with nothing but a config: no weights, no tokenizer."""
    folder = tmp_path_factory.mktemp("model")
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


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)


def flags_of(model: str, *more: str, memory: str = "64MiB,1GiB", variants: str = "lora,qlora") -> list[str]:
    how = ["--memory", memory, "--variants", variants, "--max_length", str(MAX_LENGTH)]
    return ["plan", "clinical_classification", "--model", model, *how, *more]


@pytest.mark.parametrize("name", ["plan.svg", "plan.png"])
def test_a_picture_is_written_whole(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = tmp_path / name
    file.write_text("an earlier one")
    main(flags_of(model, "--picture", str(file), variants="lora"))
    assert capsys.readouterr().out.endswith(f"drawn: {file}\n")
    assert list(tmp_path.iterdir()) == [file]
    if name.endswith("svg"):
        root = ET.parse(file).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 20
    else:
        with Image.open(file) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 200
            colours = image.convert("RGB").getcolors(1 << 24)
            assert colours is not None
            assert {(31, 119, 180), (255, 127, 14)} <= {colour for _, colour in colours}  # a line for each memory
