"""What a comparison says, in sentences."""

from dataclasses import dataclass

from fastff.train.report.rows import Row, Summary, against_dense, has_collapsed, is_routed, plus_minus

_VERBS = {
    "wins": "wins against",
    "loses": "loses to",
    "same": "shows no difference within two standard errors from",
    "ahead": "is ahead of",
    "behind": "is behind",
    "level": "is level with",
}
_PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"  # numbers stay on one line
_TALLY = {  # after a number
    "wins": "better",
    "loses": "worse",
    "same": "no different within two standard errors",
    "ahead": "ahead",
    "behind": "behind",
    "level": "level",
}


@dataclass(frozen=True)
class Words:
    """The summary of a report.

    Attributes:
        tally: one sentence over all routed layers; empty if there are none.
        verdicts: for each routed layer its label, the class of its verdict and the rest of a sentence.
        collapsed: labels of layers that use few of their leaves, with how many.
        errors_known, errors_unknown: whether some differences have an error, and whether some have none.
    """

    tally: str
    verdicts: list[tuple[str, str, str]]
    collapsed: list[str]
    errors_known: bool
    errors_unknown: bool


def in_words(summary: Summary) -> Words:
    """Every routed layer against the dense layer that executes as many neurons, and which layers have collapsed."""
    rows = [row for row in summary["rows"] if is_routed(row)]
    differences = [d for row in rows if (d := against_dense(summary, row))]
    return Words(
        _tally([d.verdict for d in differences]),
        [_verdict(summary, row) for row in rows],
        [
            f"{row['label']} ({row['metrics']['effective_leaves']['mean']:.1f} of {row['leaves']})"
            for row in rows
            if has_collapsed(row)
        ],
        any(d.error is not None for d in differences),
        any(d.error is None for d in differences),
    )


def _tally(verdicts: list[str]) -> str:
    if not verdicts:
        return ""
    counts = ", ".join(f"{verdicts.count(v)} {words}" for v, words in _TALLY.items() if v in verdicts)
    layers = "1 routed layer has" if len(verdicts) == 1 else f"{len(verdicts)} routed layers have"
    return f"{layers} a dense layer of the same executed width to compare with: {counts}."


def _verdict(summary: Summary, row: Row) -> tuple[str, str, str]:
    difference = against_dense(summary, row)
    width = row["facts"]["inference_width"]
    if difference is None:
        return row["label"], "none", f"has no dense layer of its executed width ({width}) beside it."
    accuracies = f"{_accuracy(row)} against {_accuracy(difference.dense)} %"
    text = f"{_VERBS[difference.verdict]} {difference.dense['label']}: {difference} points ({accuracies})."
    return row["label"], difference.verdict, text.replace(" ± ", _PLUS_MINUS).replace(" %", "\N{NO-BREAK SPACE}%")


def _accuracy(row: Row) -> str:
    return plus_minus({**row["metrics"]["test_accuracy"], "error": None})
