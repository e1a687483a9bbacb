"""What a check found, in words and for programs."""

import json

import planted
from planted import batches, encoder

from hf_accum import check
from hf_accum.gradient_check.report import Finding, Report


def test_a_report_goes_to_a_program_and_to_a_terminal() -> None:
    report = check(encoder(), planted.mean, batches(), stock=False, name="mine")
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["findings"][0]["kind"] == "mean_of_means"
    assert "mine: 8 examples" in str(report)
    assert "fault: a mean in the place of a sum" in str(report)


def test_numbers_that_are_not_finite_are_null() -> None:
    finding = Finding("not_finite", "fault", "why", "way out", {"loss": float("nan")})
    report = Report("mine", 8, 10, 1e-9, (finding,), {"a cut": float("inf")}, ())
    written = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert written["findings"][0]["numbers"] == {"loss": None}
    assert written["compared"] == {"a cut": None}
    assert written["ok"] is False
