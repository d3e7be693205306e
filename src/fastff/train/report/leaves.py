"""What single layers learnt: entropy of each node, use of the leaves, mean input of each leaf."""

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fastff.runs.plot_style import colour_of
from fastff.train.report.rows import Row, is_routed, kind
from fastff.train.report.style import Picture, draw

HEAT_MAPS = 4
GRIDS = 3
GRID_LEAVES = 64
PREFERRED = ("tree", "fff", "ultra", "moe")


@dataclass(frozen=True)
class Leaf:
    """Mean input of a leaf as the data URI of a PNG, and its share of the samples in percent."""

    image: str
    share: float


def node_entropy(rows: list[Row]) -> Picture | None:
    """Entropy of each node over epochs as heat maps of a few rows; None if no row has them."""
    rows = _chosen([r for r in rows if r["curves"].get("node_entropy")], HEAT_MAPS)
    if not rows:
        return None
    lines = math.ceil(len(rows) / 2)

    def fill(figure: Figure) -> None:
        axes = figure.subplots(lines, min(2, len(rows)), squeeze=False)
        colours = colormaps["cividis"].with_extremes(bad="#ffffff")
        images = []
        for ax, row in zip(axes.flat, rows, strict=False):
            levels = _by_level(row["curves"]["node_entropy"])
            depth, epochs = len(levels), levels[0].shape[1]
            image = ax.imshow(
                np.concatenate(levels),
                aspect="auto",
                interpolation="none",
                vmin=0,
                vmax=math.log(2),
                cmap=colours,
                extent=(0.5, epochs + 0.5, depth, 0),
            )
            images.append(image)
            for level in range(1, depth):
                ax.axhline(level, color="white", linewidth=1.6)
            ax.set_yticks([level + 0.5 for level in range(depth)], [str(level) for level in range(depth)])
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(False)
            ax.set_title(row["label"])
            ax.set(xlabel="epoch", ylabel="level of the tree")
        for ax in axes.flat[len(rows) :]:
            ax.remove()
        figure.colorbar(images[0], ax=axes, label="entropy (nats)", fraction=0.04)

    labels = ", ".join(r["label"] for r in rows)
    caption = (
        "Entropy of each node's decisions over epochs, first seed: the root on top, below it one band per level with "
        "that level's nodes from left to right. Dark: decides hard; bright: like a coin; white: reached by no sample."
    )
    return draw(fill, 2.3 * lines + 0.4, f"Heat maps of node entropies over epochs of {labels}.", caption)


def _by_level(history: list[list[float | None]]) -> list[Any]:
    """Of each level an image (pixels, epochs), all of the same height however many nodes the level has."""
    values = np.array(history, dtype=float).T  # None becomes NaN
    depth = (len(values) + 1).bit_length() - 1
    return [np.repeat(values[2**k - 1 : 2 ** (k + 1) - 1], 2 ** (depth - 1 - k), axis=0) for k in range(depth)]


def leaf_usage(rows: list[Row]) -> Picture | None:
    """Share of the samples that each leaf gets, sorted, for every routed row; None if there are none."""
    rows = [r for r in rows if is_routed(r) and r.get("leaf_counts")]
    if not rows:
        return None
    lines = math.ceil(len(rows) / 3)

    def fill(figure: Figure) -> None:
        axes = figure.subplots(lines, 3, squeeze=False)
        for ax, row in zip(axes.flat, rows, strict=False):
            shares = np.sort(_shares(row))[::-1]
            ax.stairs(shares, np.arange(len(shares) + 1), fill=True, color=colour_of(kind(row)))
            ax.axhline(100 / len(shares), color="#000000", linewidth=0.9, linestyle="--")
            ax.set_xlim(0, len(shares))
            ax.set_ylim(0, None)
            ax.set_title(row["label"], fontsize=7.5)
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            ax.yaxis.set_major_locator(MaxNLocator(4))
        for ax in axes.flat[len(rows) :]:
            ax.remove()
        figure.supxlabel("leaves, the most used first", fontsize=9)
        figure.supylabel("share of the samples (%)", fontsize=9)

    labels = ", ".join(r["label"] for r in rows)
    caption = "Use of the leaves (of an MoE: experts) on the test data, sorted, first seed. Dashed: an equal share."
    return draw(fill, 1.55 * lines + 0.4, f"Sorted shares of the samples that each leaf gets, of {labels}.", caption)


def mean_inputs(folder: Path, rows: list[Row]) -> list[tuple[str, list[Leaf]]]:
    """Of a few routed rows with mean_inputs.safetensors: label and leaves, each with its mean input.

    Raises:
        ValueError: such a file is damaged.
    """
    found = []
    for row in _chosen([r for r in rows if is_routed(r) and r["leaves"] <= GRID_LEAVES], len(rows)):
        images = _load(folder / "runs" / row["first_run"] / "mean_inputs.safetensors")
        shares = _shares(row)
        if images is not None and len(images) == len(shares):
            leaves = [Leaf(_data_uri(i), float(share)) for i, share in zip(images, shares, strict=True)]
            found.append((row["label"], leaves))
    return found[:GRIDS]


def _chosen(rows: list[Row], number: int) -> list[Row]:
    """At most `number` of `rows`: one of each kind in turn, trees first, of a kind the ones with most leaves."""
    ranked: list[tuple[int, int, Row]] = []
    for rank, name in enumerate(PREFERRED):
        members = sorted((r for r in rows if kind(r) == name), key=lambda r: -r["leaves"])
        ranked += [(turn, rank, row) for turn, row in enumerate(members)]
    return [row for _, _, row in sorted(ranked, key=lambda item: item[:2])[:number]]


def _shares(row: Row) -> Any:
    counts = np.array(row["leaf_counts"][0], dtype=float)
    return 100 * counts / max(1.0, counts.sum())


def _load(path: Path) -> Any:
    """The images (L, C, H, W) in `path`; None if there is no such file, or they are no images."""
    if not path.exists():
        return None
    try:
        images = load_file(path)["mean_inputs"]
    except (OSError, SafetensorError, KeyError):
        raise ValueError(f"{path} is damaged; delete it to leave it out of the report") from None
    return images if images.ndim == 4 and images.shape[1] in (1, 3) and images.dtype == np.uint8 else None


def _data_uri(image: Any) -> str:
    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
