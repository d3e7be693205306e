"""How all figures of the report look, and their way into HTML: SVG with text as text, the same bytes every time."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

# Okabe and Ito: distinguishable for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7A00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
KIND_COLOURS = {"dense": "#000000", "moe": "#E69F00", "fff": "#0072B2", "ultra": "#009E73", "tree": "#D55E00"}
KIND_MARKERS = {"dense": "o", "moe": "D", "fff": "s", "ultra": "v", "tree": "^"}
WIDTH = 7.6  # inches

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastff",
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "text.parse_math": False,  # labels are anyone's text
    "figure.facecolor": "white",
    "savefig.dpi": 100,
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        svg: inline SVG.
        alt: what it shows, for readers who cannot see it.
        caption: below it.
    """

    svg: str
    alt: str
    caption: str


def draw(fill: Callable[[Figure], None], height: float, alt: str, caption: str) -> Picture:
    """Let `fill` draw into a figure of `height` inches, in the report's style."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        fill(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Picture(_inline(buffer.getvalue()), alt, caption)


def _inline(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # every figure has the same ones; a page may have each once
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)  # its frame carries the description


def colour_of(kind: str) -> str:
    """The colour of a kind of layer."""
    return KIND_COLOURS.get(kind, "#CC79A7")


def accuracy_axis(ax: Axes, low: float, high: float, *, ticks: int) -> None:
    """An accuracy axis (percent) on which equal steps are equal ratios of the error, so that 98 and 99 stay apart."""
    from numpy import clip, log10  # arrays come in from matplotlib

    def forward(accuracy: Any) -> Any:
        return -log10(clip(100.2 - accuracy, 0.1, None))

    def backward(value: Any) -> Any:
        return 100.2 - 10.0 ** -clip(value, -3, 1)

    bottom, top = float(forward(low)), float(forward(high))
    margin = 0.06 * (top - bottom) + 0.002
    ax.set_yscale("function", functions=(forward, backward))
    ax.set_ylim(max(0.0, backward(bottom - margin)), min(100.05, backward(top + margin)))
    ax.yaxis.set_major_locator(FixedLocator(_accuracy_ticks(forward, *ax.get_ylim(), ticks)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def _accuracy_ticks(forward: Callable[[float], Any], low: float, high: float, most: int) -> list[float]:
    """About `most` round numbers between `low` and `high`, the roundest first, none too close to another."""
    apart = (forward(high) - forward(low)) / (most + 1)
    ticks: list[float] = []
    for step in (50, 10, 5, 2, 1, 0.5, 0.2, 0.1):
        for n in range(int(low / step), int(high / step) + 1):
            tick = round(n * step, 1)
            if low <= tick <= high and all(abs(forward(tick) - forward(t)) >= apart for t in ticks):
                ticks.append(tick)
        if len(ticks) >= most - 2:
            break
    return sorted(ticks)
