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


def equal_loss_table(found: list[Row]) -> Table:
    """What `fastff.bench.equal_loss.speedups` gives: each layer beside the dense layer of its loss."""
    shown = Table(title="Beside the dense layer of the same loss", box=box.SIMPLE)
    shown.add_column("layer")
    for column in ("loss", "time", "in", "dense of that loss", "its time", "in", "times faster"):
        shown.add_column(column, justify="right")
    for (kind, tokens), rows in groupby(found, lambda row: (row["pass"], row["tokens"])):
        shown.add_section()
        shown.add_row(Text(f"{kind}, {tokens} {'token' if tokens == 1 else 'tokens'}", style="bold"))
        for row in rows:
            dense = ["below", "–", "–", "–"]
            if row["speedup"] is not None:
                seconds, speedup = duration(row["dense_seconds"]), _three_digits(row["speedup"])
                more = "> " if row["beyond"] else ""
                dense = [f"{more}{row['dense_width']:.0f}", seconds, row["dense_precision"], f"{more}{speedup}"]
            own = [f"  {row['layer']}", f"{row['loss']:.3f}", duration(row["seconds"]), row["precision"]]
            shown.add_row(*map(Text, (*own, *dense)))
    return shown


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
