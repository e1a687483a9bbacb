"""Labels of the flags: names, or numbers with names."""

import pytest

from hf_accum.errors import UserError
from hf_accum.tasks.label_codes import as_flag, codes_of, names_of


def test_codes_and_names_come_apart_and_together() -> None:
    flags = ["1=immediate", " 2 = very urgent ", "-3=a=b"]
    assert codes_of(flags) == (("immediate", "very urgent", "a=b"), ("1", "2", "-3"))
    assert as_flag(*codes_of(flags)) == ["1=immediate", "2=very urgent", "-3=a=b"]
    plain = ["eye", "a=b", "3"]
    assert codes_of(plain) == (tuple(plain), ())
    assert as_flag(*codes_of(plain)) == plain


@pytest.mark.parametrize("flags", [["1=a", "b"], ["1=a", "1=b"], ["01=a", "1=b"], ["1=a", "2=a"], ["1=2", "2=1"]])
def test_a_mapping_is_of_each_label_and_different(flags: list[str]) -> None:
    with pytest.raises(UserError, match=f"^`labels` {','.join(flags)}: "):
        codes_of(flags)


def test_the_names_that_flags_alone_tell() -> None:
    assert names_of(["1=a", "2=b"], "label") == ("a", "b")
    assert names_of([], ["fever", "cough"]) == ("fever", "cough")
    assert names_of(["Fever", "Cough"], ["fever", "cough"]) == ("Fever", "Cough")
    for column in (None, "label", ["label"]):
        assert names_of([], column) == ()
