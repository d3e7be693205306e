"""Soft routing (P1): the probability of every leaf of a tree."""

import torch
from torch import Tensor

from fastff.ops.checks import tree_depth


def leaf_probabilities(p: Tensor) -> Tensor:
    """Multiply, for each leaf, p (right) or 1 - p (left) of the nodes on its path.

    Args:
        p: (T, N), N = 2^D - 1: each node's probability of going right, in [0, 1], breadth first.

    Returns:
        (T, L), L = 2^D, rows summing to 1.
    """
    reached = 1 + p[:, :0].sum(-1, keepdim=True)  # 1 for the root, and part of the graph at depth 0 too
    for level in range(tree_depth(p.shape[1])):
        right = reached * p[:, 2**level - 1 : 2 ** (level + 1) - 1]
        reached = torch.stack([reached - right, right], dim=-1).flatten(1)
    return reached
