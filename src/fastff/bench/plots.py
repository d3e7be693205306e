"""A plot of a suite: time a token against tokens or training width, both logarithmic."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, FuncFormatter, LogFormatter, NullLocator

from fastff.bench.results import Results, Row
from fastff.bench.suites import SUITES
from fastff.runs.files import write_atomically
from fastff.runs.plot_style import DASHES, KIND_MARKERS, STYLE, colour_of

BOUND_COLOUR = "#999999"
Key = tuple[str, str]  # pass and cache


def plot(results: Results) -> Path | None:
    """Write the PNG beside the JSON; returns its path, or None where there is nothing to draw."""
    panels: dict[Key, list[Row]] = {}
    for row in results.rows:
        panels.setdefault((row["pass"], row["cache"]), []).append(row)
    if not panels:
        return None
    axis = SUITES[results.suite].axis
    with matplotlib.rc_context(STYLE):
        heights = [4.0 if _are_lines(rows, axis) else 0.8 + 0.22 * len(rows) for rows in panels.values()]
        figure = Figure(figsize=(8.6, 0.6 + sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        styles = _styles(results.rows, axis)
        for ax, ((kind, cache), rows) in zip(axes, panels.items(), strict=True):
            if _are_lines(rows, axis):
                _lines(ax, rows, axis, styles)
            else:
                _points(ax, rows, axis, styles)
            if axis == "width":
                _cache_lines(ax, results)
            ax.set_title(f"{kind}, {_tokens(rows)}{cache} caches, {_threads(results)}")
        figure.suptitle(f"{results.suite}: {SUITES[results.suite].title}", fontsize=10)
        path = results.path.with_suffix(".png")
        write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=150))
    return path


def _are_lines(rows: list[Row], axis: str) -> bool:
    return len({row[axis] for row in rows}) > 1 and (axis == "width" or len({row["tokens"] for row in rows}) > 1)


def _points(ax: Axes, rows: list[Row], axis: str, styles: dict[str, dict[str, Any]]) -> None:
    """One token count alone: a line of the panel for each candidate."""
    for row in rows:
        name = _line(row, axis)
        time, low, high = (1e6 * row[key] / row["tokens"] for key in ("median_s", "low_s", "high_s"))
        ax.plot([low, high], [name, name], color=styles[name]["color"], alpha=0.4, linewidth=4)
        ax.plot([time], [name], markersize=6, **styles[name])
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_formatter(LogFormatter())
    ax.set_xlabel("time a token (µs)")


def _lines(ax: Axes, rows: list[Row], axis: str, styles: dict[str, dict[str, Any]]) -> None:
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(_line(row, axis), []).append(row)
    for name, members in lines.items():
        members = sorted(members, key=lambda r: r[axis])
        x = [r[axis] for r in members]
        y, low, high = ([1e6 * r[key] / r["tokens"] for r in members] for key in ("median_s", "low_s", "high_s"))
        ax.fill_between(x, low, high, color=styles[name]["color"], alpha=0.15, linewidth=0)
        ax.plot(x, y, label=name, markersize=4, **styles[name])
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(_ticks({r[axis] for r in rows}, axis))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(LogFormatter())  # labels where there is no power of ten
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("tokens a call" if axis == "tokens" else "neurons trained")
    ax.set_ylabel("time a token (µs)")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.8)


def _ticks(values: set[int], axis: str) -> list[int]:
    """All token counts; of widths, which lie close to them, the powers of two."""
    return sorted(values if axis == "tokens" else {2 ** round(math.log2(value)) for value in values})


def _short(number: float) -> str:
    return f"{number / 1024:g}k" if number >= 1024 and number % 1024 == 0 else f"{number:g}"


def _cache_lines(ax: Axes, results: Results) -> None:
    """Where the float32 weights of a layer reach the size of a cache."""
    neuron_bytes = 4 * (results.settings.in_features + results.settings.out_features)
    low, high = ax.get_xlim()
    for name, size in results.machine["caches"].items():
        width = size / neuron_bytes
        if name != "L1" and low < width < high:
            ax.axvline(width, color="#999999", linewidth=0.8, linestyle=":")
            ax.annotate(f" weights = {name}", (width, 0.98), xycoords=("data", "axes fraction"), va="top", fontsize=7.5)


def _styles(rows: Iterable[Row], axis: str) -> dict[str, dict[str, Any]]:
    """Colour and marker by kind of layer, dashes by line within a kind."""
    styles: dict[str, dict[str, Any]] = {}
    members: dict[str, int] = {}
    for row in rows:
        name, kind = _line(row, axis), row["kind"]
        if name not in styles:
            dash = DASHES[members.get(kind, 0) % len(DASHES)]
            members[kind] = members.get(kind, 0) + 1
            styles[name] = {
                "color": BOUND_COLOUR if kind == "bound" else colour_of(kind),
                "marker": KIND_MARKERS.get(kind, "*"),
                "linestyle": dash,
            }
    return styles


def _line(row: Row, axis: str) -> str:
    return row["candidate"] if axis == "tokens" else row["series"]


def _tokens(rows: list[Row]) -> str:
    """The token count, where it is the same for all."""
    counts = {row["tokens"] for row in rows}
    return "" if len(counts) > 1 else "1 token, " if counts == {1} else f"{counts.pop()} tokens, "


def _threads(results: Results) -> str:
    count = results.settings.threads
    return "1 thread" if count == 1 else f"{count} threads"
