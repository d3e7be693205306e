"""The candidates that several suites share, of the shape of the settings."""

from typing import Any

import torch

from fastff.bench.candidate import LayerCandidate
from fastff.bench.settings import Settings
from fastff.nn import FFF, FeedForward, MoE, TreeFeedForward, UltraFFF

EXPERT_WIDTH = 32  # of P1's speed figure
LEAF_WIDTHS = (1, 4, 8)  # of trees that execute as many neurons as UltraFFF
NAMES = {torch.float32: "", torch.bfloat16: " bf16", torch.float16: " fp16"}


def dense(s: Settings, width: int, dtype: torch.dtype = torch.float32, **options: Any) -> LayerCandidate:
    """The dense layer of `width`; `options` of the candidate."""
    named = {"label": f"dense {width}{NAMES[dtype]}", "series": f"dense{NAMES[dtype]}", "kind": "dense"} | options
    return LayerCandidate(
        make=lambda device: FeedForward(s.in_features, s.out_features, width=width, device=device), dtype=dtype, **named
    )


def bound(s: Settings, **options: Any) -> LayerCandidate:
    """The dense layer of the executed width, which no layer of that cost can beat."""
    return dense(s, s.executed, label=f"dense {s.executed} (bound)", series="bound", kind="bound", **options)


def ultra(s: Settings, dtype: torch.dtype = torch.float32, *, sparse: bool = False, **options: Any) -> LayerCandidate:
    """`UltraFFF` of the settings."""
    return LayerCandidate(
        f"UltraFFF {s.trees}x{s.depth}{NAMES[dtype]}{', sparse' if sparse else ''}",
        f"UltraFFF{NAMES[dtype]}{', sparse' if sparse else ''}",
        "ultra",
        lambda device: UltraFFF(
            s.in_features, s.out_features, depth=s.depth, trees=s.trees, sparse=sparse, device=device
        ),
        dtype,
        **options,
    )


def tree_shapes(s: Settings) -> list[tuple[int, int]]:
    """Depths and leaf widths of trees that execute as many neurons as `UltraFFF`, the narrowest leaves first."""
    return [(s.depth + 1 - width, width) for width in LEAF_WIDTHS if width <= max(1, s.depth)]


def tree(
    s: Settings, depth: int, leaf_width: int, gradient: str = "", *, sparse: bool = False, **options: Any
) -> LayerCandidate:
    """`TreeFeedForward`; for inference the base is merged."""
    more = f"{', ' if gradient else ''}{gradient}{', sparse' if sparse else ''}"
    return LayerCandidate(
        f"Tree d{depth} l{leaf_width}{more}",
        f"Tree l{leaf_width}{more}",
        "tree",
        lambda device: TreeFeedForward(
            s.in_features,
            s.out_features,
            depth=depth,
            leaf_width=leaf_width,
            trees=s.trees,
            gradient=gradient or "exact",
            sparse=sparse,
            device=device,
        ),
        **options,
    )


def fff(s: Settings, depth: int, leaf_width: int) -> LayerCandidate:
    """`FFF`, hard as it is in inference."""
    return LayerCandidate(
        f"FFF d{depth} l{leaf_width}",
        f"FFF l{leaf_width}",
        "fff",
        lambda device: FFF(s.in_features, s.out_features, depth=depth, leaf_width=leaf_width, device=device),
    )


def moe_shape(s: Settings) -> tuple[int, int]:
    """Experts and their width, together of about the training width of the settings."""
    width = min(EXPERT_WIDTH, -(-s.width // 2))
    return max(2, round(s.width / width)), width


def moe(s: Settings, **options: Any) -> LayerCandidate:
    """Noisy top-2 mixture of experts of about the training width of the settings."""
    experts, width = moe_shape(s)
    return LayerCandidate(
        f"MoE {experts} x {width}, top 2",
        "MoE top 2",
        "moe",
        lambda device: MoE(s.in_features, s.out_features, experts=experts, expert_width=width, device=device),
        **options,
    )
