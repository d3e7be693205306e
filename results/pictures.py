"""The pictures of the README and the docs, for light and for dark pages: `python results/tables.py` draws them.

A picture keeps a digest of what it was drawn from (results, and the code that draws), by which `--check` knows whether
it is up to date; versions of matplotlib place text differently, so files themselves are not compared.
"""

import hashlib
import inspect
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fastff.bench import equal_loss_plot
from fastff.bench.equal_loss import KnownLayer
from fastff.runs import plot_style
from fastff.runs.files import write_atomically

HERE = Path(__file__).parent
FOLDER = HERE.parent / "docs" / "images"
LARGEST = 100_000  # bytes of a picture
SIZES = {"font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10}
TREE, FAINT = plot_style.colour_of("tree"), 0.45


def equal_loss(results: dict) -> Figure:
    """Loss against time, for one token and for many: dense layers a line, trees points."""
    return _equal_loss(results, [("forward", 1), ("forward", 128)], columns=1)


def equal_loss_all(results: dict) -> Figure:
    """The same for every call that was measured, two side by side."""
    return _equal_loss(results, equal_loss_plot.calls_of(results["rows"]), columns=2)


def _equal_loss(results: dict, calls: list[equal_loss_plot.Call], columns: int) -> Figure:
    layers = [KnownLayer(**known) for known in results["losses"]]
    return equal_loss_plot.equal_loss_figure(results["rows"], layers, results["equal_loss"], calls, columns)


def width(results: dict) -> Figure:
    """Time of a call against the training width."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    lines: dict[str, list[dict]] = defaultdict(list)
    for row in results["rows"]:
        lines[row["series"]].append(row)
    for name, rows in lines.items():
        kind = rows[0]["kind"]
        colour = equal_loss_plot.page_colour(kind)
        dashes = {"Tree l8": "--"}.get(name, "-")
        x, y = [row["width"] for row in rows], [row["median_s"] for row in rows]
        ax.plot(x, y, dashes, color=colour, marker=plot_style.KIND_MARKERS[kind], markersize=4, label=name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: equal_loss_plot.short_duration(value)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("neurons of the layer")
    ax.set_ylabel(f"time of {results['rows'][0]['tokens']:,} tokens")
    ax.legend(fontsize=10)
    return figure


def distilled(results: dict) -> Figure:
    """Agreement with the original against the tokens a second of the whole model, for each call that was timed."""
    found = results["distilled"]
    shapes = list(found["original"]["milliseconds"])
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, shape in zip(figure.subplots(1, len(shapes), sharey=True), shapes, strict=True):
        sequences, length = map(int, shape.split("x"))
        lines: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
        for name, row in found.items():
            kind, size = _kind_and_size(name.removesuffix(", int8"))
            speed = 1e3 * sequences * length / row["milliseconds"][shape]
            lines[kind + ", int8" * name.endswith(", int8")].append((speed, row["agreement"], size))
        for label, points in lines.items():
            _quality_line(ax, label, sorted(points))
        ax.set_title(f"{sequences} x {length} tokens a call")
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_locator(FixedLocator([1000 * 2**k for k in range(8)]))
        ax.margins(x=0.2)
        ax.set_xlabel("tokens a second")
    figure.axes[0].set_ylabel("agreement with the original")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return figure


def _kind_and_size(layer: str) -> tuple[str, str]:
    """Of the name of a layer, or of an original that keeps its largest neurons: the line it is on, and its label."""
    if layer.startswith("original"):
        return ("original", "") if layer == "original" else ("original, sparse", layer.split()[-2] + " %")
    kind = layer.partition(":")[0]
    options = dict(item.split("=") for item in layer.partition(":")[2].split(","))
    return ("trees", f"d{options['depth']} l{options['leaf_width']}") if kind == "tree" else (kind, options["width"])


def _quality_line(ax: Axes, label: str, points: list[tuple[float, float, str]]) -> None:
    kind, in_int8 = label.removesuffix(", int8"), label.endswith(", int8")
    known = {"trees": "tree", "original, sparse": "moe"}.get(kind, "dense")
    colour, marker = equal_loss_plot.page_colour(known), "*" if kind == "original" else plot_style.KIND_MARKERS[known]
    x, y, names = zip(*points, strict=True)
    line = {"linestyle": "--" if in_int8 else "-", "fillstyle": "none" if in_int8 else "full"}
    ax.plot(x, y, color=colour, marker=marker, markersize=9 if kind == "original" else 6, label=label, **line)
    beside: dict = {"xytext": (-7, -3), "ha": "right"} if kind == "trees" else {"xytext": (7, -3)}
    for place, name in zip(zip(x, y, strict=True), () if in_int8 else names, strict=False):
        ax.annotate(name, place, textcoords="offset points", fontsize=8, **beside)


def tree(_: dict) -> Figure:
    """A tree of depth 3 with the path of one token."""
    figure = Figure(figsize=(5.2, 2.7), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    path = [(0, 0), (1, 1), (2, 2), (3, 5)]
    for level in range(3):
        for place in range(2**level):
            for side in (0, 1):
                on_path = (level, place) in path and (level + 1, 2 * place + side) in path
                _edge(ax, (level, place), (level + 1, 2 * place + side), on_path)
    for level in range(4):
        for place in range(2**level):
            _neuron(ax, (level, place), leaf=level == 3, on_path=(level, place) in path)
    for neuron, text in zip(path, ["z = w · x + b ≥ 0: right", "z < 0: left", "z ≥ 0: right"], strict=False):
        ax.annotate(text, _position(neuron), textcoords="offset points", xytext=(10, 6), fontsize=10)
    ax.annotate("the leaf that computes", (_position((3, 5))[0], -0.22), ha="center", va="top", fontsize=10)
    ax.annotate("nodes\ndecide", (0.02, 2.55), fontsize=10)
    ax.annotate("leaves", (0.02, 0.28), fontsize=10)
    ax.set_xlim(0, 8)
    ax.set_ylim(-0.6, 3.35)
    ax.set_axis_off()
    return figure


def _position(neuron: tuple[int, int]) -> tuple[float, float]:
    level, place = neuron
    return 8 * (place + 0.5) / 2**level, 3.0 - level


def _edge(ax: Axes, upper: tuple[int, int], lower: tuple[int, int], on_path: bool) -> None:
    (x, y), (u, v) = _position(upper), _position(lower)
    colour = TREE if on_path else matplotlib.rcParams["text.color"]
    ax.plot([x, u], [y, v], color=colour, linewidth=2.6 if on_path else 1, alpha=1 if on_path else FAINT, zorder=1)


def _neuron(ax: Axes, neuron: tuple[int, int], leaf: bool, on_path: bool) -> None:
    x, y = _position(neuron)
    colour = TREE if on_path else "#8c959f"
    ax.plot([x], [y], marker="s" if leaf else "o", markersize=13 if leaf else 11, color=colour, zorder=2)


# Each with the results that it shows.
PICTURES: dict[str, tuple[Callable[[dict], Figure], str | None]] = {
    "equal-loss": (equal_loss, "bench/equal-768-zen4/equal-loss"),
    "equal-loss-all": (equal_loss_all, "bench/equal-768-zen4/equal-loss"),
    "width": (width, "bench/width"),
    "distilled": (distilled, "models/minilm"),
    "tree": (tree, None),
}


def draw(check: bool) -> bool:
    """Draw what is out of date, or with `check` nothing.

    Returns:
        Whether a picture was missing, out of date or too large.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = False
    for name, (make, source) in PICTURES.items():
        text = (HERE / f"{source}.json").read_text() if source else "{}"
        for theme, style in plot_style.THEMES.items():
            digest, path = _digest(text, theme), FOLDER / f"{name}-{theme}.svg"
            known = path.exists() and f"drawn from {digest}" in path.read_text() and path.stat().st_size <= LARGEST
            stale |= not known
            if known or check:
                continue
            with matplotlib.rc_context(style | SIZES):
                figure = make(json.loads(text))
                about = {"Date": None, "Description": f"drawn from {digest}"}
                write_atomically(path, lambda p, f=figure, m=about: f.savefig(p, format="svg", metadata=m))
            if path.stat().st_size > LARGEST:
                raise ValueError(f"{path.name} must be at most {LARGEST} bytes, got {path.stat().st_size}")
    return stale


def _digest(*texts: str) -> str:
    code = [Path(__file__).read_text(), inspect.getsource(equal_loss_plot), inspect.getsource(plot_style)]
    return hashlib.sha256("\0".join([*code, *texts]).encode()).hexdigest()[:16]
