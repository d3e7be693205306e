"""The comparisons that have a name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fastff.nn import build_layer
from fastff.train.compare.comparison import Candidate, Comparison, with_dense_baselines

# P1's training (facts: SGD 0.2, batch 256, hardening weight 3 in its explorative and comparison experiments).
AS_IT_IS = {"balance": 0.0, "initialise": False, "grow": 0.0}  # no help for the routing
P1_SGD = {**AS_IT_IS, "optimizer": "sgd", "lr": 0.2, "batch_size": 256, "weight_decay": 0.0, "schedule": "constant"}
P1_ADAM = {
    **AS_IT_IS,
    "optimizer": "adamw",
    "lr": 1e-3,
    "batch_size": 4096,
    "weight_decay": 0.0,
    "schedule": "plateau",
    "plateau_epochs": 7,
}
P1_HARDENING = {"hardening": 3.0}
# The weight that hardens leaves of one neuron without collapsing them at once; P1 does not state a schedule.
RISING_HARDENING = {"hardening": 30.0, "hardening_schedule": "warmup"}
P1_MOE = {"importance": 0.1, "load": 0.1}

# What we recommend; dense layers and experts get the same optimiser, schedule and number of trials.
ADAMW = {**AS_IT_IS, "optimizer": "adamw", "lr": 2e-3, "batch_size": 128, "weight_decay": 0.1, "schedule": "cosine"}
RECIPE = {**ADAMW, "balance": 0.1, "initialise": True, "grow": 0.4}
# P1's explorative figures at training width 128: test accuracy, and memorisation accuracy where it is stated.
P1_EXPLORATIVE: dict[str, dict[str, tuple[float, ...]]] = {
    "fashionmnist": {"dense": (89.6,), "d4 l8": (86.1,), "d5 l4": (85.4,), "d6 l2": (84.3,), "d7 l1": (77.7,)},
    "mnist": {
        "dense": (98.1,),
        "d4 l8": (94.9, 99.3),
        "d5 l4": (93.6, 97.6),
        "d6 l2": (92.4, 96.2),
        "d7 l1": (92.0, 94.1),
    },
    "usps": {"dense": (94.2,), "d4 l8": (92.1,), "d5 l4": (90.3,), "d6 l2": (88.1,), "d7 l1": (77.8,)},
}
DROPOUTS: tuple[dict[str, Any], ...] = ({}, {"input_dropout": 0.2})


def _is_cifar10(data: str) -> bool:
    return "cifar10" in data.lower() or "cifar-10" in data.lower()


def _trials(settings: dict[str, Any], *changes: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple({**settings, **change} for change in changes)


def quick(data: str) -> Comparison:
    """Every layer, on `digits` or on the first 2,000 training samples of other data, in minutes."""
    adamw = {**ADAMW, "lr": 1e-2, "batch_size": 64}
    p1 = {**P1_SGD, "batch_size": 64}
    dense = _trials(adamw, *DROPOUTS)
    moe = _trials({**adamw, **P1_MOE}, *DROPOUTS)
    tree = _trials({**RECIPE, "lr": 1e-2, "batch_size": 64}, *DROPOUTS)
    hardened = _trials({**p1, **P1_HARDENING}, *DROPOUTS)
    candidates = (
        Candidate("dense 128", "dense:width=128", dense),
        Candidate("MoE 8 x 16, top 2", "moe:experts=8,expert_width=16", moe),
        Candidate("FFF d4 l8, P1's training", "fff:depth=4,leaf_width=8", hardened),
        Candidate("FFF d4 l8, no hardening loss", "fff:depth=4,leaf_width=8", _trials(p1, *DROPOUTS)),
        Candidate("UltraFFF 1x6", "ultra:depth=6", dense),
        Candidate("UltraFFF 1x11", "ultra:depth=11", dense),
        Candidate("Tree d2 l2", "tree:depth=2,leaf_width=2", tree),
        Candidate("Tree d3 l4", "tree:depth=3,leaf_width=4", tree),
        Candidate("Tree d4 l8", "tree:depth=4,leaf_width=8", tree),
        Candidate("Tree d4 l16", "tree:depth=4,leaf_width=16", tree),
    )
    return Comparison(
        "quick",
        "Every layer on small data: where a tree wins against the dense layer of its inference cost, and where not.",
        {"data": data, "epochs": 40, "limit": 2000},
        with_dense_baselines(candidates, dense),
        seeds=4,
    )


def p1_explorative(data: str) -> Comparison:
    """P1's explorative experiment at training width 128: leaf widths 8, 4, 2, 1."""
    shapes = ((4, 8), (5, 4), (6, 2), (7, 1))
    dense = _trials(ADAMW, *DROPOUTS)
    figures = next((f for name, f in P1_EXPLORATIVE.items() if name in data.lower().replace("_", "")), {})

    def published(shape: str) -> dict[str, Any]:
        test, *memorised = figures.get(shape, ()) or (None,)
        if test is None:
            return {}
        return {"source": "P1, best of 10", "test_accuracy": test, "memorisation_accuracy": next(iter(memorised), None)}

    candidates = (
        Candidate("dense 128, P1's training", "dense:width=128", ({**P1_SGD, "epochs": 60},), published("dense")),
        Candidate("dense 128", "dense:width=128", dense),
        *(
            Candidate(
                f"FFF d{d} l{l}, P1's training",
                f"fff:depth={d},leaf_width={l}",
                _trials({**P1_SGD, "epochs": 60}, P1_HARDENING, RISING_HARDENING),
                published(f"d{d} l{l}"),
            )
            for d, l in shapes
        ),
        *(
            Candidate(f"Tree d{d} l{l}", f"tree:depth={d},leaf_width={l}", _trials(RECIPE, *DROPOUTS))
            for d, l in shapes
        ),
    )
    return Comparison(
        "p1-explorative",
        "P1's explorative shapes at training width 128, with P1's training and with ours, beside dense layers.",
        {"data": data, "epochs": 20},
        with_dense_baselines(candidates, dense),
        seeds=3,
    )


def p1_comparison(data: str) -> Comparison:
    """P1's comparison on CIFAR-10: dense, MoE (experts of 16, top 2), FFF (leaves of 32) at widths 64 to 1024."""
    figures = {64: (49.3, 29.4, 45.9), 128: (51.5, 33.6, 45.5), 256: (52.0, 33.9, 44.4), 512: (52.4, 34.5, 43.7)}
    figures[1024] = (53.0, 35.2, 41.3)
    cifar = _is_cifar10(data)
    ours = {**ADAMW, "lr": 1e-3, "batch_size": 256, "input_dropout": 0.2, "epochs": 15}

    def published(test: float) -> dict[str, Any]:
        return {"source": "P1", "test_accuracy": test} if cifar else {}

    candidates: list[Candidate] = []
    for width, (dense, moe, fff) in figures.items():
        depth, experts = (width // 32).bit_length() - 1, width // 16
        tree = f"depth={depth},leaf_width=32"
        moe_layer = f"moe:experts={experts},expert_width=16"
        candidates += [
            Candidate(f"dense {width}, P1's training", f"dense:width={width}", (P1_ADAM,), published(dense)),
            Candidate(f"MoE {experts} x 16, P1's training", moe_layer, ({**P1_ADAM, **P1_MOE},), published(moe)),
            Candidate(
                f"FFF d{depth} l32, P1's training", f"fff:{tree}", ({**P1_ADAM, **P1_HARDENING},), published(fff)
            ),
            Candidate(f"MoE {experts} x 16, small batches", moe_layer, ({**ours, "importance": 0.01, "load": 0.01},)),
            Candidate(
                f"Tree d{depth} l32", f"tree:{tree}", ({**ours, "balance": 0.03, "initialise": True, "grow": 0.4},)
            ),
        ]
    return Comparison(
        "p1-comparison",
        "P1's comparison of dense, MoE and FFF layers without augmentation, with P1's training and with ours.",
        {"data": data, "epochs": 40, "patience": 10},
        with_dense_baselines(tuple(candidates), (ours,)),
        seeds=3,
    )


def recipe(data: str) -> Comparison:
    """What we recommend, beside both papers' trees, experts and dense layers that run as many neurons."""
    ours, moved = _recipe_for(data)
    changes: tuple[dict[str, Any], ...] = ({}, moved)
    tree = _trials(ours, *changes)
    plain = _trials({**ours, **AS_IT_IS}, *changes)
    moe = _trials({**ours, **AS_IT_IS, **P1_MOE}, *changes)
    p1 = _trials({**P1_SGD, **RISING_HARDENING, "epochs": 60}, {}, {**moved, "epochs": 60})
    shapes = ((4, 8), (5, 4), (6, 2), (7, 1), (6, 6), (8, 4), (11, 1))
    candidates = (
        *(Candidate(f"Tree d{d} l{l}", f"tree:depth={d},leaf_width={l}", tree) for d, l in shapes),
        Candidate("4 trees d5 l1", "tree:depth=5,leaf_width=1,trees=4", tree),
        *(Candidate(f"FFF d{d} l{l}, P1's training", f"fff:depth={d},leaf_width={l}", p1) for d, l in shapes[:4]),
        Candidate("UltraFFF 1x7", "ultra:depth=7", plain),
        Candidate("UltraFFF 1x11", "ultra:depth=11", plain),
        Candidate("UltraFFF 4x5", "ultra:depth=5,trees=4", plain),
        *(
            Candidate(f"MoE {experts} x {width}, top 2", f"moe:experts={experts},expert_width={width}", moe)
            for experts, width in ((4, 2), (4, 4), (8, 8))
        ),
        Candidate("dense 12, two-sided", "tree:depth=0,leaf_width=12,shared_base=false", plain),
        Candidate("dense 128", "dense:width=128", plain),
    )
    return Comparison(
        "recipe",
        "What we recommend, beside both papers' trees, experts and dense layers that run as many neurons.",
        {"data": data},
        with_dense_baselines(candidates, plain),
        seeds=3,
    )


def _recipe_for(data: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings for trees on some data, and what changes where images are moved: more to learn, more epochs."""
    ours = {**RECIPE, "input_dropout": 0.2, "epochs": 20}
    if not _is_cifar10(data):
        return ours, {"shift": 1, "epochs": 60, "input_dropout": 0.0}
    photographs = {"batch_size": 256, "balance": 0.03, "epochs": 15}
    return {**ours, **photographs}, {"shift": 2, "flip": True, "epochs": 40, "input_dropout": 0.0}


def growth(data: str) -> Comparison:
    """Trees of 16 executed neurons from 59 to 20,479 in all: trained at once, grown, and with moved images."""
    ours, moved = _recipe_for(data)
    ways: tuple[tuple[str, dict[str, Any]], ...] = (
        ("at once", {"grow": 0.0}),
        ("grown", {}),
        ("grown, moved images", moved),
    )
    shapes = ((2, 14), (4, 12), (6, 10), (8, 8), (10, 6), (11, 5), (12, 4))
    candidates = tuple(
        Candidate(f"Tree d{d} l{l}, {way}", f"tree:depth={d},leaf_width={l}", _trials(ours, change))
        for way, change in ways
        for d, l in shapes
    )
    return Comparison(
        "growth",
        "How accuracy grows with the number of neurons at equal cost, and where it stops: leaves without samples.",
        {"data": data},
        with_dense_baselines(candidates, _trials({**ours, **AS_IT_IS}, {}, moved)),
        seeds=3,
    )


def p1_vit(data: str) -> Comparison:
    """P1's vision transformer on CIFAR-10, training width 128, leaf widths 32 to 1."""
    base = {**AS_IT_IS, "optimizer": "adamw", "lr": 4e-4, "batch_size": 128, "weight_decay": 0.0, "schedule": "cosine"}
    cifar = _is_cifar10(data)
    shapes = ((2, 32, 83.6), (3, 16, 83.2), (4, 8, 82.8), (5, 4, 81.6), (6, 2, 80.1), (7, 1, 79.8))

    def published(test: float) -> dict[str, Any]:
        return {"source": "P1", "test_accuracy": test} if cifar else {}

    candidates = (
        Candidate("dense 128", "dense:width=128", (base,), published(84.7)),
        *(
            Candidate(
                f"FFF d{d} l{l}, hardening 5",
                f"fff:depth={d},leaf_width={l}",
                ({**base, "hardening": 5.0},),
                published(test),
            )
            for d, l, test in shapes
        ),
        *(
            Candidate(
                f"Tree d{d} l{l}",
                f"tree:depth={d},leaf_width={l}",
                ({**base, "balance": 0.01, "initialise": True, "grow": 0.4},),
            )
            for d, l, _ in shapes
        ),
    )
    return Comparison(
        "p1-vit",
        "P1's vision transformer (4 layers, hidden 128, patch 4) with augmentation; the feedforward layer varies.",
        {"data": data, "model": "vit", "epochs": 100, "shift": 4, "flip": True},
        with_dense_baselines(candidates, (base,)),
        seeds=3,
    )


PRESETS: dict[str, tuple[Callable[[str], Comparison], str]] = {  # with the data that each is meant for
    "quick": (quick, "digits"),
    "recipe": (recipe, "ylecun/mnist"),
    "growth": (growth, "ylecun/mnist"),
    "p1-explorative": (p1_explorative, "ylecun/mnist"),
    "p1-comparison": (p1_comparison, "uoft-cs/cifar10"),
    "p1-vit": (p1_vit, "uoft-cs/cifar10"),
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
