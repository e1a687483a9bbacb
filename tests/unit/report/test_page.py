"""The page: everything of the data is text in it, nothing of it comes from elsewhere; and in a browser."""

import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, open_browser
from report_cases import write_lines, write_long_run, write_run

from hf_accum.report.page import render
from hf_accum.report.run_files import RunFiles, read_run
from hf_accum.report.write import write_report

EVIL = "<script>alert('x')</script><img src=x onerror=alert(2)>&amp;\ud800\x00"


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def few(folder: Path) -> RunFiles:
    """A run of few figures, which is quickly drawn."""
    write_run(folder, 1)
    (folder / "tuning.json").unlink()
    write_lines(folder / "metrics.jsonl", [])
    return read_run(folder, folder.name)


def test_whatever_the_data_says_is_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1, classes=("flu", EVIL))
    (folder / "tuning.json").unlink()
    write_lines(folder / "metrics.jsonl", [])
    error = {"id": EVIL, "text": EVIL, "other": EVIL, "label": EVIL, "prediction": EVIL, "probabilities": {EVIL: 1}}
    write_lines(folder / "errors.jsonl", [error])
    write_lines(folder / "samples.jsonl", [{"when": EVIL, "number": EVIL, "prompt": EVIL, "generated": EVIL}])
    (folder / "config.yaml").write_text(json.dumps({"dataset": EVIL, EVIL: EVIL}))
    facts = {"recipe": EVIL, "notes": [EVIL], "versions": {EVIL: EVIL}, "device": EVIL}
    (folder / "run.json").write_text(json.dumps(facts))
    page = Elements(render([read_run(folder, EVIL)]).html)
    assert {"script", "img"} & {tag for tag, _ in page.found} == set()
    assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
    assert page.text.count("<script>alert('x')</script><img src=x onerror=alert(2)>") > 10


def test_nothing_is_fetched(tmp_path: Path) -> None:
    page = Elements(render([few(tmp_path / "run")]).html)
    for tag, attributes in page.found:
        for name in {"src", "href", "xlink:href", "srcset", "data", "action"} & set(attributes):
            assert (attributes[name] or "").startswith(("#", "data:")), (tag, attributes)
    assert "default-src 'none'" in str(page.found)


def test_without_texts_there_are_none(tmp_path: Path) -> None:
    run = few(tmp_path / "run")
    write_lines(run.folder / "samples.jsonl", [{"when": "after", "number": 1, "generated": "the text of a sample"}])
    (run.folder / "run.json").write_text(json.dumps({"notes": ["row 3 is 'the text of a row'"]}))
    run = read_run(run.folder, "run")
    with_texts, without = render([run]).html, render([run], texts=False).html
    assert with_texts.count("the text of") == 4 + 2
    assert "the text of" not in without
    assert "texts of the data are left out" in without
    assert "notes.jsonl:1" in without  # the examples can be looked up


def test_what_is_said_at_the_start_is_no_note_of_the_evaluation(tmp_path: Path) -> None:
    run = few(tmp_path / "run")
    assert "Said before the first step" not in render([run]).html
    (run.folder / "run.json").write_text(json.dumps({"notes": ["5 rows have no text"]}))
    (run.folder / "evaluation.json").write_text(json.dumps({"loss": 1.0, "notes": ["never predicted: c"]}))
    page = render([read_run(run.folder, "run")]).html
    places = [
        "<h2>Held-out examples",
        "never predicted: c",
        "<h2>Events",
        "<h2>Said before the first",
        "5 rows have no",
    ]
    assert sorted(places, key=page.index) == places


def test_a_run_that_goes_on_says_so_and_is_read_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 0, through=False)
    write_lines(folder / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    (folder / "tuning.json").unlink()
    page = render([read_run(folder, "run")], reload_seconds=10).html
    assert "not through: 1 steps so far" in page
    assert "there is no evaluation.json yet" in page
    assert '<meta http-equiv="refresh" content="10">' in page
    assert "refresh" not in render([read_run(folder, "run")]).html


def test_problems_are_told_on_the_page(tmp_path: Path) -> None:
    run = few(tmp_path / "run")
    (run.folder / "metrics.jsonl").write_text("{\n")
    assert "metrics.jsonl: 1 line is no JSON object" in render([read_run(run.folder, "run")]).html


@pytest.mark.slow
def test_runs_side_by_side(tmp_path: Path) -> None:
    runs = [few(tmp_path / name) for name in ("one", "other")]
    runs[1].config["learning_rate"] = 0.5
    report = render(runs, with_files=True)
    text = html.unescape(re.sub(r"<[^>]+>", " ", report.html))
    assert re.search(r"Settings that differ\s+setting\s+one\s+other\s+learning_rate\s+0\.001\s+0\.5\s", text)
    assert {"confusion-1.svg", "confusion-2.png", "reliability.svg"} <= set(report.figures)


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    pytest.importorskip("websockets", reason="is what the browser is asked by (the extra 'test')")
    with open_browser() as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of a long run alone, and of it beside a short one that is not through."""
    folder = tmp_path_factory.mktemp("runs")
    long = write_long_run(folder / "a-long-run")
    short = write_run(folder / ("a-name-without-any-blank-" * 8), 5, through=False)
    evil = [{"id": "1", "text": "<script>document.title = 'bad'</script>" + "x" * 500}]
    write_lines(long / "errors.jsonl", evil)
    write_report([long])
    write_report([long, short], folder / "both.html")
    return [long / "report.html", folder / "both.html"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(browser: Page, pages: list[Path], width: int, scheme: str) -> None:
    for file in pages:
        browser.said.clear()
        browser.requests.clear()
        seconds = browser.open(file, width, scheme)
        assert file.stat().st_size < 3_000_000
        assert seconds < 2
        assert browser.said == []
        assert [url for url in browser.requests if not url.startswith(("data:", file.as_uri()))] == []
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        assert "bad" not in browser.value("document.title")
        boxes = browser.value(
            "[...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect().width,"
            " s.getBBox().width, s.querySelectorAll('path').length, s.querySelectorAll('text').length])"
        )
        assert len(boxes) == len(re.findall("<figure", file.read_text())) >= 10
        for shown, drawn, num_paths, num_texts in boxes:
            assert shown > 250
            assert drawn > 100
            assert num_paths > 3
            assert num_texts > 3
        ink, paper = (
            [int(part) for part in re.findall(r"\d+", browser.value(f"getComputedStyle({of})"))[:3]]
            for of in (
                "document.querySelector('figure svg text')).fill + (''",
                "document.body).backgroundColor + (''",
            )
        )
        assert abs(sum(ink) - sum(paper)) > 400, "the texts of a figure can be read"
        assert (sum(paper) > 382) == (scheme == "light")
