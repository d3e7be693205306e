"""Which rows of a tree's parameters a forward reads."""

import torch
from torch import Tensor

from fastff.ops import cmm_in, tree_feedforward
from fastff.ops.descend import global_rows


def met_blocks(x: Tensor, weight: Tensor, bias: Tensor, sides: bool) -> Tensor:
    """Which nodes and leaves tokens x (T, I) meet: (K, 2 N + 1) bool, breadth first, the N nodes and then the leaves.

    With `sides` also what lies on the other side of each decision, followed to its leaf, as the gradient does.
    """
    K, N, _ = weight.shape
    _, path = tree_feedforward(x, weight, bias, bias.unsqueeze(-1), activation="relu", gradient="none")
    levels = torch.arange(path.logits.shape[-1], -1, -1, device=x.device)
    way = (path.leaf.unsqueeze(-1) + N + 1 >> levels) - 1  # (T, K, D + 1), numbered breadth first
    met = torch.zeros(K, 2 * N + 1, dtype=torch.bool, device=x.device)

    def mark(nodes: Tensor) -> None:
        met.view(-1).index_fill_(0, global_rows(nodes, 2 * N + 1).flatten(), True)

    mark(way)
    here = ((way[..., 1:] - 1) ^ 1) + 1  # the children on the sides not taken, (T, K, D)
    for level in range(here.shape[-1] if sides else 0):
        if level:  # only what began above is at this level
            at = here[..., :level]
            rows = global_rows(at, N).flatten(1)
            z = cmm_in(x, weight.flatten(0, 1).unsqueeze(1), rows).view(at.shape) + bias.flatten()[rows].view(at.shape)
            here = torch.cat([2 * at + 1 + (z >= 0).long(), here[..., level:]], dim=-1)
        mark(here)
    return met
