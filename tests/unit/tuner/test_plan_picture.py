"""A plan as a picture: written whole, with a line for each memory size."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image
from plan_cases import flags_of, save_config

from hf_accum.cli.main import main

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_config(tmp_path_factory.mktemp("model"))


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
        assert all(f"<!-- {name} -->" in file.read_text() for name in ("64 MiB", "1.00 GiB"))  # in the legend
    else:
        with Image.open(file) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 200
            colours = image.convert("RGB").getcolors(1 << 24)
            assert colours is not None
            assert {(31, 119, 180), (255, 127, 14)} <= {colour for _, colour in colours}  # a line for each memory
