"""The package: its public names."""

import pytest


def test_the_package_gives_each_piece_by_name_and_nothing_else() -> None:
    import hf_accum

    for name in hf_accum.__all__:
        assert getattr(hf_accum, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = hf_accum.Trainer  # type: ignore[attr-defined]
