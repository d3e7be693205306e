"""Our layers and training beside all others, on any data."""

from typing import Any

from fastff.train.compare.comparison import Candidate, Comparison, with_dense_baselines
from fastff.train.compare.presets.first_paper import published
from fastff.train.compare.presets.settings import (
    ADAMW,
    AS_IT_IS,
    DROPOUTS,
    P1_HARDENING,
    P1_MOE,
    P1_SGD,
    RECIPE,
    RISING_HARDENING,
    is_cifar10,
    trials,
)


def quick(data: str) -> Comparison:
    """Every layer, on `digits` or on the first 2,000 training samples of other data, in minutes."""
    adamw = {**ADAMW, "lr": 1e-2, "batch_size": 64}
    p1 = {**P1_SGD, "batch_size": 64}
    dense = trials(adamw, *DROPOUTS)
    moe = trials({**adamw, **P1_MOE}, *DROPOUTS)
    tree = trials({**RECIPE, "lr": 1e-2, "batch_size": 64}, *DROPOUTS)
    hardened = trials({**p1, **P1_HARDENING}, *DROPOUTS)
    candidates = (
        Candidate("dense 128", "dense:width=128", dense),
        Candidate("MoE 8 x 16, top 2", "moe:experts=8,expert_width=16", moe),
        Candidate("FFF d4 l8, P1's training", "fff:depth=4,leaf_width=8", hardened),
        Candidate("FFF d4 l8, no hardening loss", "fff:depth=4,leaf_width=8", trials(p1, *DROPOUTS)),
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


def recipe(data: str) -> Comparison:
    """What we recommend, beside both papers' trees, experts and dense layers that run as many neurons."""
    ours, moved = _recipe_for(data)
    changes: tuple[dict[str, Any], ...] = ({}, moved)
    tree = trials(ours, *changes)
    plain = trials({**ours, **AS_IT_IS}, *changes)
    moe = trials({**ours, **AS_IT_IS, **P1_MOE}, *changes)
    p1 = trials({**P1_SGD, **RISING_HARDENING, "epochs": 60}, {}, {**moved, "epochs": 60})
    shapes = ((4, 8), (5, 4), (6, 2), (7, 1), (6, 6), (8, 4), (11, 1))
    candidates = (
        *(Candidate(f"Tree d{d} l{l}", f"tree:depth={d},leaf_width={l}", tree) for d, l in shapes),
        Candidate("4 trees d5 l1", "tree:depth=5,leaf_width=1,trees=4", tree),
        *(
            Candidate(
                f"FFF d{d} l{l}, P1's training", f"fff:depth={d},leaf_width={l}", p1, published(data, f"d{d} l{l}")
            )
            for d, l in shapes[:4]
        ),
        Candidate("UltraFFF 1x7", "ultra:depth=7", plain),
        Candidate("UltraFFF 1x11", "ultra:depth=11", plain),
        Candidate("UltraFFF 4x5", "ultra:depth=5,trees=4", plain),
        *(
            Candidate(f"MoE {experts} x {width}, top 2", f"moe:experts={experts},expert_width={width}", moe)
            for experts, width in ((4, 2), (4, 4), (8, 8))
        ),
        *(
            Candidate(
                f"MoE {experts} x {width}, no noise", f"moe:experts={experts},expert_width={width},noise=false", moe
            )
            for experts, width in ((4, 4), (8, 8))
        ),
        Candidate("MoE 8 x 8, loss-free", "moe:experts=8,expert_width=8,noise=false,loss_free=true", plain),
        *(
            Candidate(f"PEER 1024, {heads} x 4", f"peer:experts=1024,heads={heads},top_k=4,key_features={keys}", plain)
            for heads, keys in ((1, 8), (4, 8))
        ),
        Candidate("dense 12, two-sided", "tree:depth=0,leaf_width=12", plain),
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
    if not is_cifar10(data):
        return ours, {"shift": 1, "epochs": 60, "input_dropout": 0.0}
    photographs = {"batch_size": 256, "balance": 0.03, "epochs": 15}
    return {**ours, **photographs}, {"shift": 2, "flip": True, "epochs": 40, "input_dropout": 0.0}


def trees(data: str) -> Comparison:
    """Few deep trees or many shallow ones, 12 and 24 executed neurons each, with moved images."""
    ours, moved = _recipe_for(data)
    shapes = ((1, 11), (2, 5), (3, 3), (4, 2), (6, 1), (2, 11), (3, 7), (4, 5), (6, 3), (8, 2), (12, 1))
    candidates = (
        *(
            Candidate(f"{k} x Tree d{d} l1", f"tree:depth={d},leaf_width=1,trees={k}", trials(ours, moved))
            for k, d in shapes
        ),
        *(Candidate(f"dense {w}, two-sided", f"tree:depth=0,leaf_width={w}", trials(ours, moved)) for w in (12, 24)),
    )
    return Comparison(
        "trees",
        "Few deep trees or many shallow ones: what to do with 12 and with 24 executed neurons.",
        {"data": data},
        with_dense_baselines(candidates, trials({**ours, **AS_IT_IS}, moved)),
        seeds=3,
    )


def growth(data: str) -> Comparison:
    """Trees of 16 executed neurons from 59 to 20,479 in all: trained at once, grown, and with moved images."""
    ours, moved = _recipe_for(data)
    ways: tuple[tuple[str, dict[str, Any]], ...] = (
        ("at once", {"grow": 0.0, "initialise": True}),  # without growth decisions from the data help
        ("grown", {}),
        ("grown, moved images", moved),
    )
    shapes = ((2, 14), (4, 12), (6, 10), (8, 8), (10, 6), (11, 5), (12, 4))
    candidates = tuple(
        Candidate(f"Tree d{d} l{l}, {way}", f"tree:depth={d},leaf_width={l}", trials(ours, change))
        for way, change in ways
        for d, l in shapes
    )
    return Comparison(
        "growth",
        "How accuracy grows with the number of neurons at equal cost, and where it stops: leaves without samples.",
        {"data": data},
        with_dense_baselines(candidates, trials({**ours, **AS_IT_IS}, {}, moved)),
        seeds=3,
    )
