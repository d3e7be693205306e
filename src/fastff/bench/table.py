"""The rows of a suite as a table for the console."""

from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from fastff.bench.duration import duration
from fastff.bench.results import Results, Row
from fastff.bench.suites import SUITES


def table(results: Results) -> Table:
    """One line per row: median, half the interquartile range, how often faster than the base, how often slower than the
    bound, which is a layer that only runs as many neurons, or the model without feedforward layers.
    """
    settings, suite = results.settings, SUITES[results.suite]
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    title = f"{results.suite}: {suite.title}, {settings.in_features} features in, "
    found = Table(title=Text(f"{title}{settings.out_features} out, {threads}"), box=box.SIMPLE)
    found.add_column("layer")
    for column in ("neurons", "executed", "time", "spread", f"times {suite.base}", "of bound", "tokens/s"):
        found.add_column(column, justify="right")
    for (kind, cache, tokens), rows in groupby(results.rows, lambda row: (row["pass"], row["cache"], row["tokens"])):
        found.add_section()
        found.add_row(Text(f"{kind}, {tokens} {'token' if tokens == 1 else 'tokens'}, {cache}", style="bold"))
        seen: set[str] = set()
        for row in rows:
            if row["series"] in seen:  # the next width
                found.add_section()
                seen.clear()
            seen.add(row["series"])
            found.add_row(*_cells(row))
    return found


def left_out(results: Results) -> list[str]:
    """A line for each candidate that was not measured."""
    return [f"{row['candidate']}, {row['tokens']} tokens: {row['reason']}" for row in results.left_out]


def _cells(row: Row) -> list[Text]:
    spread = (row["high_s"] - row["low_s"]) / 2 / row["median_s"]
    return [
        Text(f"  {row['candidate']}"),
        Text(str(row["width"])),
        Text(str(row["executed"])),
        Text(duration(row["median_s"])),
        Text(f"± {100 * spread:.0f} %"),
        *(Text("–" if n is None else _three_digits(n)) for n in (row["ratio_to_dense"], row["time_to_bound"])),
        Text(f"{row['tokens'] / row['median_s']:,.0f}"),
    ]


def _three_digits(number: float) -> str:
    return f"{number:.{0 if number >= 100 else 1 if number >= 10 else 2}f}"
