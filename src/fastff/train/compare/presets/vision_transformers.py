"""Vision transformers that differ in their feedforward layers alone."""

from typing import Any

from fastff.train.compare.comparison import Candidate, Comparison, with_dense_baselines
from fastff.train.compare.presets.settings import AS_IT_IS, is_cifar10


def p1_vit(data: str) -> Comparison:
    """P1's vision transformer on CIFAR-10, training width 128, leaf widths 32 to 1."""
    base = {**AS_IT_IS, "optimizer": "adamw", "lr": 4e-4, "batch_size": 128, "weight_decay": 0.0, "schedule": "cosine"}
    cifar = is_cifar10(data)
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
                ({**base, "balance": 0.01, "grow": 0.4},),
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


def public_vit(data: str) -> Comparison:
    """The public comparison in which no fast feedforward network won (issue 12 of UltraFastBERT), scaled down."""
    base = {**AS_IT_IS, "optimizer": "adamw", "lr": 2e-3, "batch_size": 128, "weight_decay": 0.05, "schedule": "cosine"}
    ours = {**base, "balance": 0.01, "grow": 0.4}
    dense = {8: 77.5, 12: 79.1, 16: 79.4, 24: 80.4, 32: 81.2, 64: 83.1, 256: 85.7}
    neurons = {(1, 2): 75.4, (1, 3): 75.4, (1, 4): 76.3, (1, 5): 76.0, (1, 6): 75.4, (1, 7): 76.0, (1, 8): 75.7}
    neurons |= {(4, 4): 78.3, (4, 5): 78.9, (4, 6): 78.9}
    trees = ((1, 7), (2, 7), (4, 3), (4, 5), (4, 7), (8, 3), (8, 7))  # trees, depth; leaves of one neuron

    def published(validation: float) -> dict[str, Any]:
        full = "UltraFastBERT issue 12, hidden 512: best validation accuracy"
        return {"source": full, "test_accuracy": validation} if is_cifar10(data) else {}

    candidates = (
        *(Candidate(f"dense {w}", f"dense:width={w},activation=gelu", (base,), published(a)) for w, a in dense.items()),
        *(
            Candidate(f"UltraFFF {k}x{d}", f"ultra:depth={d},trees={k}", (base,), published(a))
            for (k, d), a in neurons.items()
        ),
        *(Candidate(f"{k} x Tree d{d} l1", f"tree:depth={d},leaf_width=1,trees={k}", (ours,)) for k, d in trees),
        *(Candidate(f"dense {w}, two-sided", f"tree:depth=0,leaf_width={w}", (base,)) for w in (8, 16, 32)),
    )
    return Comparison(
        "public-vit",
        "The vision transformer of UltraFastBERT's issue 12, scaled to 4 layers, hidden 64, patch 8.",
        {"data": data, "model": "vit-small", "epochs": 15, "shift": 2, "flip": True},
        with_dense_baselines(candidates, (base,)),
        seeds=3,
    )
