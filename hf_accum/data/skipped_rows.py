"""How many bad rows are left out: more than a share of all tells of the file or the flags, not of its rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hf_accum.errors import UserError

MOST_SKIPPED_SHARE = 0.05
ENOUGH = 1_000
"""Rows, before a share of them is judged by."""


def check_share(num_rows: int, bad_rows: Mapping[str, int], most: float) -> None:
    """Refuse to leave out more than a share of the rows.

    Raises:
        UserError: with the most frequent reasons.
    """
    num_bad = sum(bad_rows.values())
    if num_bad <= most * num_rows:
        return
    often = sorted(bad_rows.items(), key=lambda item: -item[1])[:3]
    reasons = "; ".join(f"{number:,} times: {reason}" for reason, number in often)
    raise UserError(
        f"{num_bad:,} of {num_rows:,} rows cannot be used ({num_bad / num_rows:.1%}): that is more than "
        f"`max_skipped_share` {most:g}, the most that `on_bad_row skip` leaves out; look at the file or the flags, "
        f"or raise that share ({reasons})"
    )


@dataclass
class SkippedRows:
    """The rows of one pass that nobody has counted before: judged as soon as there are enough of them."""

    most_share: float
    num_rows: int = 0
    bad_rows: dict[str, int] = field(default_factory=dict)

    def count(self, reason: str | None) -> None:
        """Note a row, and why it is bad.

        Raises:
            UserError: if too many are.
        """
        self.num_rows += 1
        if reason is not None:
            self.bad_rows[reason] = self.bad_rows.get(reason, 0) + 1
            if self.num_rows >= ENOUGH:
                self.check()

    def check(self) -> None:
        """Judge by what there is: at the end of the pass.

        Raises:
            UserError: if too many are bad.
        """
        check_share(self.num_rows, self.bad_rows, self.most_share)
