"""Whether the loss is finite where there is next to nothing to compute it of."""

from hf_accum.errors import first_line
from hf_accum.gradient_check.cuts import MEANS
from hf_accum.gradient_check.probe import Probe
from hf_accum.gradient_check.report import Finding
from hf_accum.gradient_check.rows import Rows


def find_not_finite(probe: Probe, rows: Rows, found: list[Finding]) -> tuple[list[Finding], list[str]]:
    """Short texts whose loss or gradient is not finite; and what could not be tried.

    A mean over nothing is none: where the loss was found to be a mean, only texts that weigh something are told of.
    Nothing is tried where single examples were found not to be finite as they are.
    """
    if any(finding.kind == "not_finite" for finding in found) and not rows.cannot_pad:
        return [], ["short texts: single examples are not finite as they are"]
    is_mean = any(finding.kind in MEANS for finding in found)
    wrong: dict[str, float] = {}
    said: list[str] = []
    for what, batch in rows.short():
        try:
            gradient = probe.gradient([batch])
        except Exception as error:  # of the user's loss, on what it was not written for
            said.append(f"{what}: {first_line(error)}")
            continue
        if not gradient.is_finite and not (is_mean and rows.weight(batch) == 0):
            wrong[f"loss of {what}"] = gradient.loss
    if not wrong:
        return [], said
    listed = ", ".join(what.removeprefix("loss of ") for what in wrong)
    why = f"the loss or its gradient is not finite for {listed}: one such text spoils a whole window"
    way_out = "sum, and divide by nothing that may be 0; or leave such texts out of the data"
    return [Finding("not_finite", "fault", why, way_out, wrong)], said
