"""The comparisons that have a name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fastff.nn import build_layer
from fastff.train.compare.comparison import Comparison
from fastff.train.compare.presets.first_paper import p1_comparison, p1_explorative
from fastff.train.compare.presets.ours import growth, quick, recipe, trees
from fastff.train.compare.presets.vision_transformers import p1_vit, public_vit

PRESETS: dict[str, tuple[Callable[[str], Comparison], str]] = {  # with the data that each is meant for
    "quick": (quick, "digits"),
    "recipe": (recipe, "ylecun/mnist"),
    "growth": (growth, "ylecun/mnist"),
    "trees": (trees, "uoft-cs/cifar10"),
    "p1-explorative": (p1_explorative, "ylecun/mnist"),
    "p1-comparison": (p1_comparison, "uoft-cs/cifar10"),
    "p1-vit": (p1_vit, "uoft-cs/cifar10"),
    "public-vit": (public_vit, "uoft-cs/cifar10"),
}


def preset(
    name: str, *, data: str | None = None, seeds: int | None = None, only: str | None = None, **settings: Any
) -> Comparison:
    """The comparison called `name`.

    Args:
        name: a key of `PRESETS`.
        data: instead of the data that the preset is meant for.
        seeds: runs of every trial, instead of the preset's number.
        only: keep the candidates whose label contains this text, and the dense layers of their inference widths.
        settings: of `TrainConfig`, in place of the preset's for every candidate.

    Raises:
        ValueError: unknown preset, or `only` fits no candidate.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    make, meant_for = PRESETS[name]
    comparison = make(data or meant_for)
    named = [c for c in comparison.candidates if only is None or only.lower() in c.label.lower()]
    if not named:
        labels = ", ".join(c.label for c in comparison.candidates)
        raise ValueError(f"only={only!r} fits none of the candidates: {labels}")
    widths = {build_layer(c.layer, 1).inference_width for c in named}
    candidates = tuple(
        dataclasses.replace(c, trials=tuple({**t, **settings} for t in c.trials))
        for c in comparison.candidates
        if c in named or (c.layer.startswith("dense") and build_layer(c.layer, 1).inference_width in widths)
    )
    return dataclasses.replace(comparison, candidates=candidates, seeds=seeds or comparison.seeds)
