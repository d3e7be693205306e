"""Colours, markers and settings that all figures share; matplotlib itself is not imported here."""

from typing import Any

# Okabe and Ito: distinguishable for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7A00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
KIND_COLOURS = {"dense": "#000000", "moe": "#E69F00", "fff": "#0072B2", "ultra": "#009E73", "tree": "#D55E00"}
KIND_MARKERS = {"dense": "o", "moe": "D", "fff": "s", "ultra": "v", "tree": "^"}

STYLE: dict[str, Any] = {
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

# Of pictures in pages: what is drawn on nothing, so that the page's ground shows, with text that stays text.
_INK = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "axes.edgecolor")
PAGE = STYLE | {"figure.facecolor": "none", "axes.facecolor": "none", "svg.fonttype": "none", "svg.hashsalt": "fastff"}
THEMES: dict[str, dict[str, Any]] = {
    "light": PAGE | dict.fromkeys(_INK, "#1f2328") | {"grid.color": "#e4e4e4"},
    "dark": PAGE | dict.fromkeys(_INK, "#e6edf3") | {"grid.color": "#3a3f46"},
}


def colour_of(kind: str) -> str:
    """The colour of a kind of layer."""
    return KIND_COLOURS.get(kind, "#CC79A7")
