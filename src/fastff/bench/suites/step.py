"""A whole training step over token counts: forward, backward, optimiser."""

import torch
from torch import nn

from fastff.bench.candidate import UnavailableError
from fastff.bench.group import Group
from fastff.bench.passes import STEP
from fastff.bench.settings import Settings
from fastff.bench.suites.layers import bound, dense, moe, tree, tree_shapes, ultra
from fastff.bench.suites.suite import Suite

TOKENS = (128, 2048, 16384)
RATE = 1e-6  # small, so that hundreds of steps on random gradients leave the layer what it is


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    """PyTorch's fastest."""
    return torch.optim.AdamW(module.parameters(), lr=RATE, fused=True)


def rowwise(module: nn.Module) -> torch.optim.Optimizer:
    """Ours, for sparse gradients."""
    try:
        from fastff.optim import RowwiseAdamW
    except ImportError:
        raise UnavailableError("this version of fastff has no RowwiseAdamW") from None
    return RowwiseAdamW(module.parameters(), lr=RATE, model=module)


def groups(s: Settings) -> list[Group]:
    """Trees with dense gradients and PyTorch's AdamW, and with sparse ones and ours."""
    shape = tree_shapes(s)[0]
    candidates = [
        dense(s, s.width, base=True, optimizer=adamw),
        bound(s, optimizer=adamw),
        ultra(s, optimizer=adamw),
        ultra(s, sparse=True, optimizer=rowwise),
        tree(s, *shape, "chosen", optimizer=adamw),
        tree(s, *shape, "chosen", sparse=True, optimizer=rowwise),
        moe(s, optimizer=adamw),
    ]
    return [Group(STEP, tokens, candidates) for tokens in s.tokens or TOKENS]


SUITE = Suite("training step, AdamW; RowwiseAdamW where sparse", groups)
