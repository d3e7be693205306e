"""The first paper's comparisons of layers alone, with its training and with ours."""

from typing import Any

from fastff.train.compare.comparison import Candidate, Comparison, with_dense_baselines
from fastff.train.compare.presets.settings import (
    ADAMW,
    DROPOUTS,
    P1_ADAM,
    P1_HARDENING,
    P1_MOE,
    P1_SGD,
    RECIPE,
    RISING_HARDENING,
    is_cifar10,
    trials,
)

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


def published(data: str, shape: str) -> dict[str, Any]:
    """P1's explorative figures of a layer on data of that name; empty where it has none."""
    figures = next((f for name, f in P1_EXPLORATIVE.items() if name in data.lower().replace("_", "")), {})
    test, *memorised = figures.get(shape, ()) or (None,)
    if test is None:
        return {}
    return {"source": "P1, best of 10", "test_accuracy": test, "memorisation_accuracy": next(iter(memorised), None)}


def p1_explorative(data: str) -> Comparison:
    """P1's explorative experiment at training width 128: leaf widths 8, 4, 2, 1."""
    shapes = ((4, 8), (5, 4), (6, 2), (7, 1))
    dense = trials(ADAMW, *DROPOUTS)
    candidates = (
        Candidate("dense 128, P1's training", "dense:width=128", ({**P1_SGD, "epochs": 60},), published(data, "dense")),
        Candidate("dense 128", "dense:width=128", dense),
        *(
            Candidate(
                f"FFF d{d} l{l}, P1's training",
                f"fff:depth={d},leaf_width={l}",
                trials({**P1_SGD, "epochs": 60}, P1_HARDENING, RISING_HARDENING),
                published(data, f"d{d} l{l}"),
            )
            for d, l in shapes
        ),
        *(Candidate(f"Tree d{d} l{l}", f"tree:depth={d},leaf_width={l}", trials(RECIPE, *DROPOUTS)) for d, l in shapes),
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
    cifar = is_cifar10(data)
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
            Candidate(f"Tree d{depth} l32", f"tree:{tree}", ({**ours, "balance": 0.03, "grow": 0.4},)),
        ]
    return Comparison(
        "p1-comparison",
        "P1's comparison of dense, MoE and FFF layers without augmentation, with P1's training and with ours.",
        {"data": data, "epochs": 40, "patience": 10},
        with_dense_baselines(tuple(candidates), (ours,)),
        seeds=3,
    )
