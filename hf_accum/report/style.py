"""The look of figures, and figures as SVG that takes its colours from the page it stands in."""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2329", "#667080", "#d8dde4", "#fffffe"
SERIES = ("#1668b8", "#c2470c", "#15803e", "#7e23ce", "#a16308", "#be195d", "#0f7590", "#54575d")
"""The colours of runs, and of what is told apart in one; further ones are dashed."""
_ON_DARK = ("#6cb4f5", "#fb955c", "#5fd08a", "#c8a1fb", "#e3b54a", "#f58ab5", "#58c9e3", "#b4b8c0")
_DARK = {INK: "#e8eaee", MUTED: "#9aa3b2", GRID: "#3a404b", PAPER: "#15181d"} | dict(
    zip(SERIES, _ON_DARK, strict=True)
)
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {c: f"c{i}" for i, c in enumerate(SERIES)}
_CUSTOM = 2 * "-"  # a property of CSS that is one's own begins so
_DASHES = ("-", "--", ":", "-.")
_NOTHING = {"svg": dict.fromkeys(("Date", "Creator", "Format", "Type")), "png": {"Software": None}}
_REFERENCE = re.compile(r"#([\w.-]+)")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")

LIGHT_VARIABLES = "".join(f"{_CUSTOM}{_NAMES[colour]}:{colour};" for colour in _NAMES)
DARK_VARIABLES = "".join(f"{_CUSTOM}{_NAMES[colour]}:{dark};" for colour, dark in _DARK.items())
"""Declarations of CSS: each colour of a figure by its name, on light and on dark paper."""


def colour_of(index: int) -> str:
    """Of the run with this number."""
    return SERIES[index % len(SERIES)]


def dashes_of(index: int) -> str:
    """Of its lines."""
    return _DASHES[index // len(SERIES) % len(_DASHES)]


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save figures inside: matplotlib's own settings are as before afterwards."""
    from matplotlib import rc_context

    settings: Any = {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.labelcolor": INK,
        "lines.linewidth": 1.3,
        "text.color": INK,
        "text.parse_math": False,  # a class may be called $x$
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "svg.fonttype": "none",
        "svg.hashsalt": "hf-accum",  # the same figure is the same file
        "figure.max_open_warning": 0,
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has other fonts
        yield


def image_of(figure: "Figure", kind: str) -> bytes:
    """A figure as the bytes of a file, `png` or `svg`, on white paper."""
    written = io.BytesIO()
    figure.savefig(written, format=kind, dpi=150, facecolor="white", metadata=_NOTHING[kind])
    return written.getvalue()


def inline_svg(figure: "Figure", label: str, prefix: str) -> str:
    """A figure as an element of a page: scaled to its place, on the page's paper, in the page's colours.

    `label` is what it shows, for who does not see it. Its ids begin with `prefix`, which has to be another one for
    each figure of a page.
    """
    written = io.BytesIO()
    figure.savefig(written, format="svg", transparent=True, metadata=_NOTHING["svg"])
    root = ElementTree.fromstring(written.getvalue())
    for parent in root.iter():  # its style would be that of the whole page, which has it itself
        for child in [child for child in parent if child.tag.endswith(("}style", "}metadata"))]:
            parent.remove(child)
    used = set(_REFERENCE.findall(" ".join(value for element in root.iter() for value in element.attrib.values())))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                if value in used:
                    element.set(name, prefix + value)
            else:
                element.set(name, _of_page(value, prefix))
    whole = ElementTree.Element("svg", {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label})
    whole.extend(root)
    return ElementTree.tostring(whole, encoding="unicode")


def _of_page(value: str, prefix: str) -> str:
    """An attribute with the page's colours, fonts and ids."""
    value = _COLOUR.sub(lambda m: f"var({_CUSTOM}{_NAMES[m[0]]})" if m[0] in _NAMES else m[0], value)
    value = re.sub(r"(font: [^;']*)'[^;]*", r"\1system-ui, sans-serif", value)
    return re.sub(r"^(url\()?#(?=[\w.-]+\)?$)", lambda m: f"{m[1] or ''}#{prefix}", value)
