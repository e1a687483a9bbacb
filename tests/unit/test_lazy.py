"""Names that are imported when they are first used."""

import subprocess
import sys

import pytest

from hf_accum.errors import UserError
from hf_accum.lazy import lazily


def test_a_name_comes_from_its_home() -> None:
    get = lazily("somewhere", {"UserError": "errors"})
    assert get("UserError") is UserError
    with pytest.raises(AttributeError, match="module 'somewhere' has no attribute 'other'"):
        get("other")


def test_nothing_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, hf_accum, hf_accum.recipe; before = 'torch' in sys.modules; hf_accum.accumulate;"
        "print(before, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
