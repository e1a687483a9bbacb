"""A figure in a page: in its colours, with ids of its own, and with every text as text."""

import re

import matplotlib
import pytest
from matplotlib.figure import Figure

from hf_accum.report.figures import panel_of
from hf_accum.report.style import DARK_VARIABLES, LIGHT_VARIABLES, SERIES, image_of, inline_svg, styled


def drawn(title: str) -> Figure:
    figure, panel = panel_of()
    panel.plot([1, 2], [3, 4], "o-", color=SERIES[0], label="one")
    panel.set_title(title)
    panel.legend()
    return figure


def test_colours_are_the_page_s() -> None:
    with styled():
        text = inline_svg(drawn("a title"), "what it shows", "f1-")
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert {"--c0", "--ink", "--muted", "--grid"} <= used
    for variables in (LIGHT_VARIABLES, DARK_VARIABLES):
        assert used <= set(re.findall(r"(--\w+):", variables))
    assert not re.search(r"#[0-9a-f]{6}", text), "a colour that stays as it is on dark paper"
    assert "<style" not in text  # it would be the whole page's


def test_ids_are_its_own_and_all_references_lead_somewhere() -> None:
    with styled():
        one, other = inline_svg(drawn("x"), "x", "f1-"), inline_svg(drawn("x"), "x", "f2-")
    ids = [re.findall(r' id="([^"]+)"', text) for text in (one, other)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    for text, own in zip((one, other), ids, strict=True):
        assert len(own) == len(set(own))
        assert set(re.findall(r'(?:url\(|href=")#([\w.-]+)', text)) == set(own)


def test_a_text_of_the_data_stays_a_text() -> None:
    name = '<script>alert(1)</script> $x_1$ id="y" #1668b8;'
    with styled():
        text = inline_svg(drawn(name), '"><script>', "f1-")
    assert "<script" not in text
    assert '&lt;script&gt;alert(1)&lt;/script&gt; $x_1$ id="y" #1668b8;' in text


@pytest.mark.slow
def test_files_are_images_and_the_same_each_time() -> None:
    with styled():
        first, again = ([image_of(drawn("x"), kind) for kind in ("svg", "png")] for _ in range(2))
    assert first == again
    assert first[0].startswith(b"<?xml")
    assert first[1].startswith(b"\x89PNG")


def test_matplotlib_is_left_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    with styled():
        drawn("x")
    assert dict(matplotlib.rcParams) == before
