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

from fastff.runs.plot_style import STYLE

WIDTH = 7.6  # inches
SVG = {"svg.fonttype": "none", "svg.hashsalt": "fastff"}


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
    with matplotlib.rc_context(STYLE | SVG):
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
