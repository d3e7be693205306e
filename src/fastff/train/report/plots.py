"""Plots over all rows: accuracy against width, and curves over epochs."""

import math
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from fastff.runs.plot_style import COLOURS, DASHES, KIND_MARKERS, MARKERS, colour_of
from fastff.train.report.labels import find_places, write_labels
from fastff.train.report.rows import KINDS, Row, Summary, by_kind, dense_of_width, is_routed, kind
from fastff.train.report.style import Picture, accuracy_axis, draw

STRETCHED = "The accuracy axis is stretched towards 100 %: equal steps are equal ratios of the error."


def accuracy_against(summary: Summary, fact: str, axis: str) -> Picture:
    """Test accuracy of every row against one of its facts, such as inference_width."""
    rows = summary["rows"]
    several = any(r["metrics"]["test_accuracy"]["error"] is not None for r in rows)
    bars = " Bars: one standard error over seeds." if several else ""
    return draw(
        lambda figure: _accuracy_against(figure, summary, fact, axis),
        4.6,
        f"Test accuracy in percent of {len(rows)} layers against {axis}; the numbers are in the table above.",
        f"Test accuracy against {axis}. The line joins the dense layers.{bars} {STRETCHED}",
    )


def _accuracy_against(figure: Figure, summary: Summary, fact: str, axis: str) -> None:
    ax = figure.subplots()
    rows = summary["rows"]
    ends = [_y(r) + sign * _error(r) for r in rows for sign in (-1, 1)]
    accuracy_axis(ax, min(ends), min(100.0, max(ends)), ticks=8)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=14))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    low, high = min(r["facts"][fact] for r in rows), max(r["facts"][fact] for r in rows)
    margin = max(0.5, 0.1 * math.log2(high / low))
    ax.set_xlim(low / 2**margin, high * 2**margin)
    for name, members in by_kind(rows).items():
        members = sorted(members, key=lambda r: r["facts"][fact])
        line = [r for r in members if r is dense_of_width(summary, r["facts"]["inference_width"])]
        if name == "dense":
            ax.plot([r["facts"][fact] for r in line], [_y(r) for r in line], color="#888888", zorder=2)
        ax.errorbar(
            [r["facts"][fact] for r in members],
            [_y(r) for r in members],
            yerr=[_error(r) for r in members] if any(map(_error, members)) else None,
            fmt=KIND_MARKERS.get(name, "*"),
            color=colour_of(name),
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            elinewidth=1,
            capsize=2.5,
            zorder=3,
        )
    ax.set_xlabel(f"{axis} (logarithmic)")
    ax.set_ylabel("test accuracy (%)")
    _name_points(figure, ax, rows, fact)


def _name_points(figure: Figure, ax: Axes, rows: list[Row], fact: str) -> None:
    """Name the rows that are not dense (a dense layer's width says which it is): beside them, or by number."""
    named = [r for r in rows if kind(r) != "dense"]
    points = [_point(r, fact) for r in named]
    avoid = [_point(r, fact, e) for r in rows for e in ((-1, -0.5, 0.5, 1) if _error(r) else ()) + (0,)]
    kinds = [_marker(name, KINDS.get(name, name)) for name in by_kind(rows)]
    legend = figure.legend(handles=kinds, loc="outside upper center", ncols=5)
    figure.draw_without_rendering()  # the layout, on which the room for labels depends
    places = find_places(ax, points, [r["label"] for r in named], avoid)
    if not all(place.good for place in places):
        legend.remove()
        key = [_marker("dense", KINDS["dense"])] if len(named) < len(rows) else []
        key += [_marker(kind(r), f"{i}  {r['label']}") for i, r in enumerate(named, 1)]
        figure.legend(handles=key, loc="outside right center", labelspacing=0.35)
        figure.draw_without_rendering()
        places = find_places(ax, points, [str(i) for i in range(1, len(named) + 1)], avoid)
    write_labels(ax, places)


def _marker(name: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=KIND_MARKERS.get(name, "*"), color=colour_of(name), label=label)


def _point(row: Row, fact: str, errors: float = 0.0) -> tuple[float, float]:
    """Of `row`, or that many errors above it."""
    return float(row["facts"][fact]), _y(row) + errors * _error(row)


def _y(row: Row) -> float:
    return row["metrics"]["test_accuracy"]["mean"]


def _error(row: Row) -> float:
    return row["metrics"]["test_accuracy"]["error"] or 0.0


def learning_curves(rows: list[Row]) -> Picture:
    """Validation accuracy over epochs, one panel per kind of layer."""
    values = sorted(v for r in rows for v in r["curves"]["validation_accuracy"])
    low, high = values[len(values) // 50], values[-1]  # the first epochs of a few rows would squeeze the rest

    def axis(ax: Axes) -> None:
        accuracy_axis(ax, min(low, high - 0.5), high, ticks=6)
        ax.set_ylabel("accuracy (%)")

    return _curves(
        rows,
        lambda r: r["curves"]["validation_accuracy"],
        axis,
        "Validation accuracy over epochs",
        f"Validation accuracy over epochs, first seed of each row. {STRETCHED}",
    )


def entropy_curves(rows: list[Row]) -> Picture | None:
    """Mean node entropy over epochs of the tree layers; None if there are none."""
    rows = [r for r in rows if r["curves"].get("mean_entropy") and kind(r) != "moe"]

    def axis(ax: Axes) -> None:
        ax.set_ylim(-0.02, 0.72)
        ax.axhline(0.6931, color="#999999", linewidth=0.8, linestyle=":")
        ax.set_ylabel("entropy (nats)")

    text = "Mean entropy of the nodes' decisions over epochs"
    caption = f"{text}, first seed: 0 is a hard decision, ln 2 ≈ 0.69 (dotted) a fair coin."
    return _curves(rows, lambda r: r["curves"]["mean_entropy"], axis, text, caption) if rows else None


def leaf_curves(rows: list[Row]) -> Picture | None:
    """Effective leaves over epochs as a share of all leaves; None if no row has leaves."""
    rows = [r for r in rows if is_routed(r) and r["curves"].get("effective_leaves")]

    def axis(ax: Axes) -> None:
        ax.set_ylim(-3, 103)
        ax.axhline(25, color="#999999", linewidth=0.8, linestyle=":")
        ax.set_ylabel("of all leaves (%)")

    def shares(row: Row) -> list[float]:
        return [100 * v / row["leaves"] for v in row["curves"]["effective_leaves"]]

    text = "Effective leaves over epochs as a share of all leaves or experts"
    caption = f"{text} (the exponential of the entropy of their use), first seed. Below the dotted line: collapsed."
    return _curves(rows, shares, axis, text, caption) if rows else None


def _curves(
    rows: list[Row], values: Callable[[Row], list[Any]], axis: Callable[[Axes], None], alt: str, caption: str
) -> Picture:
    groups = by_kind(rows)
    heights = [max(1.5, 0.35 + 0.165 * len(members)) for members in groups.values()]

    def fill(figure: Figure) -> None:
        axes = figure.subplots(len(groups), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for ax, (name, members) in zip(axes, groups.items(), strict=True):
            axis(ax)
            ax.set_title(KINDS.get(name, name))
            for i, row in enumerate(members):
                _curve(ax, values(row), row["label"], i)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6)
        axes[-1].set_xlabel("epoch")

    labels = ", ".join(r["label"] for r in rows)
    return draw(fill, sum(heights) + 0.5, f"{alt}, one panel for each kind of layer. Lines: {labels}.", caption)


def _curve(ax: Axes, values: list[Any], label: str, i: int) -> None:
    marks = max(1, len(values) // 8)
    ax.plot(
        range(1, len(values) + 1),
        values,
        color=COLOURS[i % len(COLOURS)],
        linestyle=DASHES[i % len(DASHES)],
        marker=MARKERS[i % len(MARKERS)],
        markersize=3.5,
        markevery=(min(i, len(values) - 1) % marks, marks),
        label=label if not label.startswith("_") else " " + label,  # an underscore would hide it from the legend
    )
