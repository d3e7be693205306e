"""What the report, the plots and the console table share: kinds of layers, differences to dense layers, formats."""

import math
from dataclasses import dataclass
from typing import Any

from fastff.nn.usage import COLLAPSED_BELOW

Row = dict[str, Any]
Summary = dict[str, Any]

KINDS = {
    "dense": "Dense",
    "moe": "Mixture of experts",
    "fff": "FFF",
    "ultra": "UltraFFF",
    "tree": "Tree",
}


@dataclass(frozen=True)
class Difference:
    """Of the test accuracies of two rows, in points.

    Attributes:
        row, dense: the row and the dense row of the same executed width.
        points: positive where `row` is better.
        error: standard error of the difference; None where either row has a single seed.
    """

    row: Row
    dense: Row
    points: float
    error: float | None

    @property
    def verdict(self) -> str:
        """wins, loses or same (within two standard errors); ahead, behind or level where the error is unknown."""
        if self.error is None:
            return "ahead" if self.points > 0 else "behind" if self.points < 0 else "level"
        if abs(self.points) <= 2 * self.error:
            return "same"
        return "wins" if self.points > 0 else "loses"

    def __str__(self) -> str:
        return plus_minus({"mean": self.points, "error": self.error}, signed=True)


def kind(row: Row) -> str:
    """The layer's name: the part of `row["layer"]` before the colon."""
    return str(row["layer"]).partition(":")[0]


def by_kind(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by kind, known kinds first and in the order of `KINDS`."""
    kinds = sorted({kind(row) for row in rows}, key=lambda k: (list(KINDS).index(k) if k in KINDS else len(KINDS), k))
    return {k: [row for row in rows if kind(row) == k] for k in kinds}


def is_routed(row: Row) -> bool:
    return bool(row.get("leaves"))


def dense_of_width(summary: Summary, width: int) -> Row | None:
    """The dense row that executes `width` neurons; of several, the one with the best validation accuracy."""
    rows = [r for r in summary["rows"] if kind(r) == "dense" and r["facts"]["inference_width"] == width]
    return max(rows, key=lambda r: r["metrics"]["validation_accuracy"]["mean"], default=None)


def against_dense(summary: Summary, row: Row) -> Difference | None:
    """`row` against the dense row of the same inference width; None if there is none, or it is `row` itself."""
    dense = dense_of_width(summary, row["facts"]["inference_width"])
    if dense is None or dense is row:
        return None
    ours, theirs = row["metrics"]["test_accuracy"], dense["metrics"]["test_accuracy"]
    known = ours["error"] is not None and theirs["error"] is not None
    error = math.hypot(ours["error"], theirs["error"]) if known else None
    return Difference(row, dense, ours["mean"] - theirs["mean"], error)


def leaf_share(row: Row) -> float | None:
    """Effective leaves as a share of all; None for a layer without leaves."""
    return row["metrics"]["effective_leaves"]["mean"] / row["leaves"] if is_routed(row) else None


def has_collapsed(row: Row) -> bool:
    share = leaf_share(row)
    return share is not None and share < COLLAPSED_BELOW


def plus_minus(metric: dict[str, Any] | None, *, digits: int = 1, signed: bool = False) -> str:
    """`94.3 ± 0.2`; without an error `94.3`; a dash for None. Errors below 0.1 bring a second decimal."""
    if metric is None:
        return "–"
    mean, error = metric["mean"], metric["error"]
    if digits == 1 and error is not None and error < 0.095:
        digits = 2
    mean = round(mean, digits) + 0.0  # no -0.0
    text = f"{mean:{'+' if signed and mean else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return text if error is None else f"{text} ± {error:.{digits}f}"


def count(number: float) -> str:
    """A whole number with a thin space between thousands."""
    return f"{number:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
