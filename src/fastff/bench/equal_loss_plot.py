"""The picture of speed at equal loss: time against loss, the dense layers as a line, all others as points."""

import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fastff.bench.duration import duration
from fastff.bench.equal_loss import KnownLayer, Row, dense_curve
from fastff.nn import parse_layer
from fastff.runs.files import write_atomically
from fastff.runs.plot_style import MARKERS, STYLE, colour_of

MARGIN = 0.02  # of loss, above the worst layer that is shown and below the best
Call = tuple[str, int]  # pass and tokens


def plot_equal_loss(rows: Sequence[Row], layers: Sequence[KnownLayer], found: Sequence[Row], path: Path) -> Path:
    """Write the picture of all that was measured as a PNG.

    Args:
        rows: of the suite, whose dense layers make the lines.
        layers: whose losses are known.
        found: what `speedups` made of them.
        path: of the file.
    """
    with matplotlib.rc_context(STYLE):
        figure = equal_loss_figure(rows, layers, found, calls_of(rows), columns=4)
        figure.suptitle("Left and down is better: time of a call against loss, each layer in its fastest precision")
        write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=80))
    return path


def equal_loss_figure(
    rows: Sequence[Row], layers: Sequence[KnownLayer], found: Sequence[Row], calls: Sequence[Call], columns: int
) -> Figure:
    """A panel for each of `calls`, in so many columns, and one legend; under the settings of matplotlib at the time."""
    curve = dense_curve(layers)
    found = [row for row in found if row["loss"] <= curve[0].loss]
    markers = dict(zip(dict.fromkeys(row["layer"] for row in found), cycle(MARKERS[1:]), strict=False))
    lines = -(-len(calls) // columns)
    figure = Figure(figsize=(3.1 * columns if columns > 1 else 5.2, 2.6 * lines + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for ax in axes[len(calls) :]:
        ax.set_axis_off()
    axes[0].set_ylim(min(layer.loss for layer in layers) - MARGIN, curve[0].loss + MARGIN)
    for ax, call in zip(axes, calls, strict=False):
        shown = [row for row in found if _call(row) == call]
        _panel(ax, call, [row for row in rows if _call(row) == call], curve, shown, markers)
    for ax in axes[::columns]:
        ax.set_ylabel("validation loss")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=columns)
    return figure


def calls_of(rows: Sequence[Row]) -> list[Call]:
    """What was measured, each once."""
    return list(dict.fromkeys(_call(row) for row in rows))


def _call(row: Row) -> Call:
    return row["pass"], row["tokens"]


def _panel(
    ax: Axes,
    call: Call,
    rows: Sequence[Row],
    curve: Sequence[KnownLayer],
    found: Sequence[Row],
    markers: dict[str, str],
) -> None:
    kind, tokens = call
    times: dict[str, float] = {}
    for row in rows:
        times[row["series"]] = min(times.get(row["series"], row["median_s"]), row["median_s"])
    dense = [layer for layer in curve if layer.text in times]
    x, y = [times[layer.text] for layer in dense], [layer.loss for layer in dense]
    ax.plot(x, y, marker="o", markersize=4, color=page_colour("dense"), label="dense, by width")
    for layer in dense:
        place = (times[layer.text], layer.loss)
        ax.annotate(f"{layer.width}", place, textcoords="offset points", xytext=(-5, -9), ha="right", fontsize=8)
    for row in found:
        colour = page_colour(row["layer"].partition(":")[0])
        marker = markers[row["layer"]]
        point = ax.plot([row["seconds"]], [row["loss"]], marker, markersize=7, color=colour)[0]
        point.set_label(short_name(row["layer"]))
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_duration(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(x=0.15)
    ax.set_title(fill(f"{kind}, {tokens} token{'s' * (tokens > 1)}", 28))


def short_duration(seconds: float) -> str:
    """In three characters where it can be, for an axis."""
    return re.sub(r"\.0+ ", " ", duration(seconds))


def page_colour(kind: str) -> str:
    """Dense layers have the colour of text, which is there to be seen on light and on dark ground."""
    return matplotlib.rcParams["text.color"] if kind == "dense" else colour_of(kind)


def short_name(text: str) -> str:
    """Of a layer, for a picture: trees and depth, or heads and the experts of each, then what is not usual."""
    name, options = text.partition(":")[0], parse_layer(text)[1]
    if name not in ("tree", "ultra", "peer"):
        return text.replace("activation=gelu", "").strip(",")
    trees = options.get("trees", 1)
    parts = ["ultra"] if name == "ultra" else []
    if name == "peer":
        parts.append(f"PEER {options.get('heads', 8)} x {options.get('top_k', 16)}")
    else:
        parts.append(f"{trees} tree{'s' * (trees > 1)} d{options['depth']}")
    if options.get("leaf_width", 1) != 1:
        parts.append(f"l{options['leaf_width']}")
    if options.get("rank"):
        parts.append(f"r{options['rank']}")
    if options.get("master_width"):
        parts.append(f"+ {options['master_width']} dense")
    if options.get("gradient", "exact") != "exact":
        parts.append(options["gradient"])
    return " ".join(parts)
