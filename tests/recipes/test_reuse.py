"""The worked examples run; what they train does not depend on the cut; and how few lines they change."""

import difflib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

REUSE = Path(__file__).parents[2] / "recipes" / "guides" / "reuse"
GUIDE = (REUSE.parent / "own-loop.md").read_text()
SCRIPTS = sorted(REUSE.glob("*.py"))


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REUSE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters()]


def changed(before: str, after: str) -> list[str]:
    """Lines of a script that are new or others, its first line and indentation apart."""

    def lines(name: str) -> list[str]:
        text = (REUSE / f"{name}.py").read_text().partition('"""\n')[2]
        return [line.strip() for line in text.splitlines() if line.strip()]

    return [line[2:] for line in difflib.ndiff(lines(before), lines(after)) if line.startswith("+ ")]


@pytest.mark.parametrize(
    ("before", "after", "most"),
    [("plain_before", "plain_after", 5), ("plain_after", "plain_tuned", 6), ("plain_after", "plain_resumed", 4)],
)
def test_few_lines_change(before: str, after: str, most: int) -> None:
    assert 0 < len(changed(before, after)) <= most


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_the_guide_names_it(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 70
    assert f"reuse/{path.name}" in GUIDE


@pytest.mark.parametrize(
    ("name", "hows"),
    [
        ("bi_encoder", [{"capacity": 3}, {"capacity": 32}]),
        ("diffusion", [{"budget": "500KiB"}, {"budget": "1GiB"}]),
        ("own_loop", [{"capacity": 3}, {"capacity": 20}]),
        ("two_heads", [{"capacity": 1}, {"capacity": 6}]),
    ],
)
@pytest.mark.usefixtures("accelerator")
def test_what_is_trained_does_not_depend_on_the_cut(name: str, hows: list[dict[str, Any]]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        one, other = (weights(module_of(name).main(**how)) for how in hows)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(one, other, strict=True))


@pytest.mark.usefixtures("accelerator")
def test_the_plain_loop_trains_the_same_however_its_batches_are_cut(
    tmp_path: Path,
) -> None:
    """With the batches of accelerate's own loop as the contrast."""
    torch.set_default_dtype(torch.float64)
    try:
        after = weights(module_of("plain_after").main(str(tmp_path / "a"), num_rows=32))
        tuned = weights(module_of("plain_tuned").main(str(tmp_path / "b"), num_rows=32, budget="1600KiB"))
        before = weights(module_of("plain_before").main(str(tmp_path / "c"), num_rows=32))
        resumed = module_of("plain_resumed")
        whole = weights(resumed.main(str(tmp_path / "d"), num_rows=32))
        again = weights(resumed.main(str(tmp_path / "d"), resume=True, num_rows=32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(after, tuned, strict=True))
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(after, whole, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))  # there was nothing left to do
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(after, before, strict=True))
