"""What a check found: each finding with its numbers, its reason and the way out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal[
    "mean_of_means",
    "count_ignored",
    "weight_of_output",
    "batch_statistics",
    "randomness",
    "padding",
    "interaction",
    "no_gradient",
    "not_finite",
    "state",
    "unexplained",
]
"""What is wrong, in the order of the guide."""

Severity = Literal["fault", "warning"]

TITLES: dict[str, str] = {
    "mean_of_means": "a mean in the place of a sum",
    "count_ignored": "the model's own loss ignores the count that it is given",
    "weight_of_output": "the weight depends on the model's output",
    "batch_statistics": "statistics of the batch",
    "randomness": "random numbers",
    "padding": "padding leaks into real positions",
    "interaction": "examples see each other",
    "no_gradient": "a parameter that is to be trained gets no gradient",
    "not_finite": "a loss that is not finite",
    "state": "a forward changes what the next one computes",
    "unexplained": "unexplained",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or is to be known.

    A `fault` makes the gradient depend on how a batch is cut, or not finite. A `warning` does not, or is wanted by
    many (dropout). `numbers` are those of the comparison that shows it, `where` names modules, parameters or fields.
    """

    kind: Kind
    severity: Severity
    why: str
    way_out: str
    numbers: Mapping[str, float]
    where: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The kind in words."""
        return TITLES[self.kind]


@dataclass(frozen=True)
class StockLoop:
    """What another loop computes for the same examples at 1 x n, one example in a forward, beside n x 1.

    `norm_ratio` is that of the two gradients' norms, 1.000 where the cut says nothing; `cosine` is between them.
    """

    name: str
    num_examples: int
    norm_ratio: float
    cosine: float


@dataclass(frozen=True)
class Report:
    """What a check of a model's loss found.

    `compared` says what was compared and how far it was off: the largest difference of a gradient's value, relative
    to the largest value of the unsplit batch's gradient. `not_compared` says what could not be, and why. `tolerance`
    is what a difference has to be below.
    """

    name: str
    num_examples: int
    num_parameters: int
    tolerance: float
    findings: tuple[Finding, ...]
    compared: Mapping[str, float]
    not_compared: tuple[str, ...]
    stock: tuple[StockLoop, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found that makes a gradient wrong: warnings may be there."""
        return not any(finding.severity == "fault" for finding in self.findings)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of the findings."""
        return tuple(finding.kind for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For a program; numbers that are not finite are null."""
        described = asdict(self)
        for finding in described["findings"]:
            finding["numbers"] = {name: _finite(value) for name, value in finding["numbers"].items()}
        described["compared"] = {name: _finite(value) for name, value in self.compared.items()}
        for loop in described["stock"]:
            loop |= {name: _finite(loop[name]) for name in ("norm_ratio", "cosine")}
        return {"ok": self.ok} | described

    def __str__(self) -> str:
        """For a terminal."""
        lines = [f"{self.name}: {self.num_examples} examples, {self.num_parameters:,} parameters, in float64"]
        lines += [f"  {what}: {difference:.1e}" for what, difference in self.compared.items()]
        for finding in self.findings:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in finding.numbers.items())
            lines.append(f"{finding.severity}: {finding.title} ({numbers})")
            lines += [f"  {finding.why}", f"  way out: {finding.way_out}"]
        if not self.findings:
            lines.append("nothing found: the gradient does not depend on the cut")
        lines += [f"not compared: {what}" for what in self.not_compared]
        for loop in self.stock:
            n = loop.num_examples
            lines.append(f"{loop.name}: the gradient at 1 x {n} is {loop.norm_ratio:.3f} times that at {n} x 1")
        return "\n".join([*lines, *self.notes])


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
