"""The picture of speed at equal loss: time against loss, the dense layers as a line, all others as points."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fastff.bench.duration import duration
from fastff.bench.equal_loss import KnownLayer, Row, dense_curve
from fastff.files import write_atomically
from fastff.nn import parse_layer
from fastff.plot_style import STYLE, colour_of

COLUMNS = 4
MARGIN = 0.02  # of loss, above the worst layer that is shown and below the best
HEIGHT, LINE = 165, 9  # of a panel and of a name, in points


def plot_equal_loss(rows: Sequence[Row], layers: Sequence[KnownLayer], found: Sequence[Row], path: Path) -> Path:
    """Write the picture as a PNG.

    Args:
        rows: of the suite, whose dense layers make the lines.
        layers: whose losses are known.
        found: what `speedups` made of them.
        path: of the file.
    """
    calls = list(dict.fromkeys((row["pass"], row["tokens"]) for row in rows))
    curve = dense_curve(layers)
    shown = [row for row in found if row["loss"] <= curve[0].loss]
    with matplotlib.rc_context(STYLE):
        lines = -(-len(calls) // COLUMNS)
        figure = Figure(figsize=(3.1 * COLUMNS, 3.0 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(lines, COLUMNS, squeeze=False, sharey=True).flatten()
        for ax in axes[len(calls) :]:
            ax.set_axis_off()
        axes[0].set_ylim(min(layer.loss for layer in layers) - MARGIN, curve[0].loss + MARGIN)
        for ax, call in zip(axes, calls, strict=False):
            own = [row for row in rows if (row["pass"], row["tokens"]) == call]
            _panel(ax, call, own, curve, [row for row in shown if (row["pass"], row["tokens"]) == call])
        for ax in axes[::COLUMNS]:
            ax.set_ylabel("validation loss (nats)")
        figure.suptitle("Left and down is better: time of a call against loss, each layer in its fastest precision")
        write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=80))
    return path


def _panel(
    ax: Axes, call: tuple[str, int], rows: Sequence[Row], curve: Sequence[KnownLayer], found: Sequence[Row]
) -> None:
    kind, tokens = call
    times: dict[str, float] = {}
    for row in rows:
        times[row["series"]] = min(times.get(row["series"], row["median_s"]), row["median_s"])
    dense = [layer for layer in curve if layer.text in times]
    x, y = [times[layer.text] for layer in dense], [layer.loss for layer in dense]
    ax.plot(x, y, marker="o", markersize=4, color=colour_of("dense"))
    for layer in dense:
        _name(ax, f"{layer.width}", times[layer.text], layer.loss, "dense", left=True)
    low, high = ax.get_ylim()
    points, below = HEIGHT / (high - low), math.inf
    for row in sorted(found, key=lambda row: -row["loss"]):  # names of about equal losses go below each other
        kind_of_layer = row["layer"].partition(":")[0]
        ax.plot([row["seconds"]], [row["loss"]], marker="^", markersize=6, color=colour_of(kind_of_layer))
        below = min(row["loss"] * points, below - LINE)
        shift = below - row["loss"] * points
        _name(ax, short_name(row["layer"]), row["seconds"], row["loss"], kind_of_layer, shift=shift)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.25)
    ax.set_title(f"{kind}, {tokens} token{'s' * (tokens > 1)}")


def _name(ax: Axes, text: str, x: float, y: float, kind: str, left: bool = False, shift: float = 0.0) -> None:
    place: dict[str, Any] = {"ha": "right", "xytext": (-5, -9)} if left else {"ha": "left", "xytext": (7, shift - 3)}
    ax.annotate(text, (x, y), textcoords="offset points", fontsize=7, color=colour_of(kind), **place)


def short_name(text: str) -> str:
    """Of a layer, for a picture: trees x depth, then what is not usual."""
    name, options = text.partition(":")[0], parse_layer(text)[1]
    if name not in ("tree", "ultra"):
        return text.replace("activation=gelu", "").strip(",")
    parts = [f"{options.get('trees', 1)} x d{options['depth']}"]
    if options.get("leaf_width", 1) != 1:
        parts.append(f"l{options['leaf_width']}")
    if options.get("rank"):
        parts.append(f"r{options['rank']}")
    if options.get("master_width"):
        parts.append(f"+ {options['master_width']}")
    if options.get("gradient", "exact") != "exact":
        parts.append(options["gradient"])
    return ("ultra " if name == "ultra" else "") + " ".join(parts)
