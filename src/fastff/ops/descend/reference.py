"""Routing down a tree: the definition (facts of P1 and P2: right when the logit is >= 0; NaN goes left)."""

import torch
from torch import Tensor

from fastff.ops.checks import tree_depth
from fastff.ops.cmm import reference as cmm


def descend(x_TI: Tensor, weight_KNI: Tensor, bias_KN: Tensor) -> tuple[Tensor, Tensor]:
    """Follow each of K trees from its root by the signs of the logits; returns logits and nodes, both (T, K, D)."""
    T = x_TI.shape[0]
    K, N, _ = weight_KNI.shape
    D = tree_depth(N)
    first_K = torch.arange(K, device=x_TI.device) * N
    logits_TKD = x_TI.new_empty(T, K, D)
    nodes_TKD = torch.empty(T, K, D, dtype=torch.int64, device=x_TI.device)
    weight_BWI, bias_B = weight_KNI.flatten(0, 1).unsqueeze(1), bias_KN.flatten()
    node_TK = torch.zeros(T, K, dtype=torch.int64, device=x_TI.device)
    for level in range(D):
        row_TK = node_TK + first_K
        z_TK = cmm.cmm_in(x_TI, weight_BWI, row_TK).squeeze(-1) + bias_B[row_TK]
        logits_TKD[..., level], nodes_TKD[..., level] = z_TK, node_TK
        node_TK = 2 * node_TK + 1 + (z_TK >= 0).long()
    return logits_TKD, nodes_TKD
