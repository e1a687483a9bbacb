"""A recipe is read from top to bottom: its loop is the same everywhere, and what stands around it is its own."""

from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.py") if path.stem != "__init__")
SHARE = 0.2
LOOP = """\
for window in training.windows:
for micro_batch in window.micro_batches(capacity):
with accumulate(accelerator, model, micro_batch):
loss = task.summed_loss(model, micro_batch.batch)
accelerator.backward(micro_batch.scaled(loss))
grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
if nonfinite.accepts(window, grad_norm):
optimizer.step()
scheduler.step()
optimizer.zero_grad()
training.step_done(window, grad_norm)"""


def lines_of(path: Path) -> list[str]:
    """The lines that say something, not of brackets alone; without comments."""
    lines = [line.split("  #")[0].strip() for line in path.read_text().splitlines()]
    return [line for line in lines if any(character.isalnum() for character in line)]


def around_the_loop(path: Path) -> list[str]:
    return [line for line in lines_of(path) if line not in LOOP.splitlines()]


def shared_lines(path: Path) -> list[str]:
    """The lines of a recipe that stand in three others: without the loop, which is to stand in each."""
    others = Counter(line for other in RECIPES if other != path for line in set(lines_of(other)))
    return [line for line in around_the_loop(path) if others[line] >= 3]


def test_the_loop_of_the_main_recipe_begins_before_line_80() -> None:
    lines = (ROOT / "recipes" / "clinical_classification.py").read_text().splitlines()
    assert next(n for n, line in enumerate(lines, 1) if line.strip().startswith("for window in training.w")) < 80


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_stands_around_the_loop_is_the_recipe_s_own(path: Path) -> None:
    shared = shared_lines(path)
    assert len(shared) < SHARE * len(around_the_loop(path)), "\n".join(shared)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_loop_is_the_same_in_all(path: Path) -> None:
    """But in retrieval, whose loss is no sum over examples."""
    is_same = LOOP in "\n".join(lines_of(path))
    assert is_same != (path.stem == "term_retrieval")
