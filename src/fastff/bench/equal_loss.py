"""Speed at equal loss: how much faster a layer is than the dense layer that one would take instead.

The *equal-loss speedup* of a layer is the time of the dense layer of the same loss, in the precision that is fastest
for so many tokens, divided by the layer's time in its fastest precision whose loss stays within 0.005 of float32's. The
width of that dense layer is interpolated between those whose losses are known, linearly in the logarithm of the width,
its time linearly in the width. Losses are never extrapolated: a layer that is better than every dense one is "beyond",
and is compared with the widest of them, whose time is a lower bound of that of a dense layer as good.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from fastff.nn import parse_layer

TOLERANCE = 0.005
Row = dict[str, Any]


@dataclass(frozen=True)
class KnownLayer:
    """A layer and the validation loss of decoders with it.

    Attributes:
        text: as of `fastff.nn.parse_layer`.
        loss: mean over seeds.
        seeds: their number.
        precisions: those whose loss was measured and stays within the tolerance; float32 counts anyhow.
    """

    text: str
    loss: float
    seeds: int
    precisions: tuple[str, ...]

    @property
    def width(self) -> int | None:
        """Of a dense layer; None for others."""
        name, options = self.text.partition(":")[0], parse_layer(self.text)[1]
        return options["width"] if name == "dense" else None


def read_losses(path: str | Path | None) -> list[KnownLayer]:
    """What examples/compare_decoders.py wrote: layers that grew as usual, at their best learning rates, the best first.

    Raises:
        ValueError: no path, or a file of another kind.
    """
    if path is None:
        raise ValueError(
            "losses must name a file of examples/compare_decoders.py, such as results/models/decoders.json"
        )
    try:
        runs = json.loads(Path(path).read_text())["runs"]
        by_rate: dict[tuple[str, float | None], list[Row]] = defaultdict(list)
        usual = max({run["grow"] for run in runs}, key=[run["grow"] for run in runs].count)
        for run in runs:
            if run["grow"] == usual:
                by_rate[run["layer"], run.get("lr")].append(run)
        known = sorted((_known(layer, runs) for (layer, _), runs in by_rate.items()), key=lambda layer: layer.loss)
        best: dict[str, KnownLayer] = {}
        for layer in known:
            best.setdefault(layer.text, layer)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"losses must be a file of examples/compare_decoders.py, got {str(path)!r}: {error}") from None
    return list(best.values())


def _known(layer: str, runs: Sequence[Row]) -> KnownLayer:
    changes: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        found = run.get("precisions", {})
        for precision, loss in found.items():
            changes[precision].append(loss - found.get("float32", run["validation_loss"]))
    kept = tuple(sorted(p for p, change in changes.items() if mean(change) <= TOLERANCE))
    return KnownLayer(layer, mean(run["validation_loss"] for run in runs), len(runs), kept)


def dense_curve(layers: Iterable[KnownLayer]) -> list[KnownLayer]:
    """The dense layers by width, of which each is better than all narrower ones."""
    curve: list[KnownLayer] = []
    for layer in sorted((known for known in layers if known.width), key=lambda known: known.width or 0):
        if not curve or layer.loss < curve[-1].loss:
            curve.append(layer)
    return curve


def equal_width(loss: float, curve: Sequence[KnownLayer]) -> float | None:
    """The width of the dense layer of that loss; None outside of what is known."""
    for narrow, wide in pairwise(curve):
        if wide.loss <= loss <= narrow.loss:
            share = (narrow.loss - loss) / (narrow.loss - wide.loss)
            low, high = math.log(narrow.width or 0), math.log(wide.width or 0)
            return math.exp(low + share * (high - low))
    return None


def speedups(rows: Iterable[Row], layers: Sequence[KnownLayer]) -> list[Row]:
    """Of every layer that is not dense, for each pass and number of tokens.

    Returns:
        Rows of "pass", "tokens", "layer", "loss", "seconds", "precision", and of the dense layer of that loss
        "dense_width", "dense_seconds", "dense_precision", and "speedup"; the last four None where the layer is worse
        than all dense ones. "beyond" says that it is better than all of them: then they are of the widest one, and the
        speedup is at least that.
    """
    curve = dense_curve(layers)
    by_call: dict[Any, dict[tuple[str, str], float]] = defaultdict(lambda: defaultdict(lambda: math.inf))
    for row in rows:  # of a layer with sparse gradients and without, the faster one
        times, key = by_call[row["pass"], row["tokens"]], (row["series"], row["dtype"])
        times[key] = min(times[key], row["median_s"])
    found: list[Row] = []
    for (kind, tokens), times in by_call.items():
        for layer in layers:
            allowed = {p: times[layer.text, p] for p in ("float32", *layer.precisions) if (layer.text, p) in times}
            if layer.width or not allowed:
                continue
            precision = min(allowed, key=lambda p: allowed[p])
            beyond = layer.loss < curve[-1].loss
            width = curve[-1].width if beyond else equal_width(layer.loss, curve)
            dense = None if width is None else _dense_time(width, curve, times)
            found.append(
                {
                    "pass": kind,
                    "tokens": tokens,
                    "layer": layer.text,
                    "loss": layer.loss,
                    "seconds": allowed[precision],
                    "precision": precision,
                    "dense_width": None if dense is None else width,
                    "dense_seconds": None if dense is None else dense[0],
                    "dense_precision": None if dense is None else dense[1],
                    "speedup": None if dense is None else dense[0] / allowed[precision],
                    "beyond": beyond,
                }
            )
    return found


def _dense_time(
    width: float, curve: Sequence[KnownLayer], times: dict[tuple[str, str], float]
) -> tuple[float, str] | None:
    """The least over the precisions, and which it is; None if a neighbour was not timed."""
    narrow, wide = next((n, w) for n, w in pairwise(curve) if (n.width or 0) <= width <= (w.width or 0))
    share = (width - (narrow.width or 0)) / ((wide.width or 0) - (narrow.width or 0))
    found = []
    for precision in {p for _, p in times}:
        low, high = (times.get((layer.text, precision)) for layer in (narrow, wide))
        if low is not None and high is not None:
            found.append((low + share * (high - low), precision))
    return min(found, default=None)
