"""The package: its public names, and those that recipes are made of."""

import doctest
import inspect
from types import ModuleType

import pytest

import hf_accum
from hf_accum import recipe


@pytest.mark.parametrize("module", [hf_accum, recipe], ids=["hf_accum", "recipe"])
def test_a_module_gives_each_piece_by_name_and_nothing_else(module: ModuleType) -> None:
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
        assert getattr(module, name).__doc__
    with pytest.raises(AttributeError, match=rf"module '{module.__name__}' has no attribute 'Trainer'"):
        _ = module.Trainer


@pytest.mark.parametrize("name", hf_accum.__all__)
def test_the_example_of_each_public_name_runs(name: str) -> None:
    """In its own docstring, or in that of the function that makes it."""
    of = {"FoundCapacity": "find_capacity", "LoaderWindows": "windows_of"}.get(name, name)
    piece = getattr(hf_accum, of)
    examples = doctest.DocTestFinder(recurse=False).find(piece, of, module=inspect.getmodule(piece))
    assert [example for test in examples for example in test.examples], f"{name} has no example"
    for test in examples:
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0
