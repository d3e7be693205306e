"""The operators of inference in PyTorch's own operators, traceable at any number of tokens: the rows that a token needs
are gathered. Slower than the kernels, and they need memory for the gathered rows, but every runtime has what they use.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastff.ops.activation import activation_name
from fastff.ops.checks import tree_depth
from fastff.ops.indexed import reference as indexed_reference
from fastff.ops.tree import reference
from fastff.ops.tree.checks import split_weights


def cmm_in(x_TI: Tensor, weight_BWI: Tensor, index_TS: Tensor) -> Tensor:
    """As `fastff.ops.cmm_in`."""
    return torch.einsum("ti,tswi->tsw", x_TI, weight_BWI[index_TS])


def cmm_out(a_TSW: Tensor, weight_BWI: Tensor, index_TS: Tensor) -> Tensor:
    """As `fastff.ops.cmm_out`."""
    return torch.einsum("tsw,tswi->ti", a_TSW, weight_BWI[index_TS])


def descend(x_TI: Tensor, weight_KNI: Tensor, bias_KN: Tensor) -> tuple[Tensor, Tensor]:
    """As `fastff.ops.descend`, one level after the other."""
    K, N, _ = weight_KNI.shape
    first_K = torch.arange(K, device=x_TI.device) * N
    weight_BWI, bias_B = weight_KNI.flatten(0, 1).unsqueeze(1), bias_KN.flatten()
    node_TK = torch.zeros_like(x_TI[:, :1], dtype=torch.int64) + torch.zeros_like(first_K)
    logits, nodes = [], []
    for _ in range(tree_depth(N)):
        row_TK = node_TK + first_K
        z_TK = cmm_in(x_TI, weight_BWI, row_TK).squeeze(-1) + bias_B[row_TK]
        logits.append(z_TK)
        nodes.append(node_TK)
        node_TK = 2 * node_TK + 1 + (z_TK >= 0).long()
    return torch.stack(logits, -1), torch.stack(nodes, -1)


def tree_infer(x: Tensor, weights: list[Tensor], activation: int) -> tuple[Tensor, Tensor, Tensor]:
    """As the operator `fastff::tree_infer`."""
    parts: list[Any] = list(split_weights(weights))
    weight, bias, out, *blocks = parts
    leaves, base = (None if t[0] is None else reference.Leaves(*t) for t in (blocks[:4], blocks[4:8]))
    name = activation_name(activation)
    if leaves is not None and weight.shape[1] == 0:  # depth 0: no tensor of nothing comes into the graph
        leaf_TK = torch.zeros_like(x[:, :1], dtype=torch.int64) + torch.arange(len(weight), device=x.device) * 0
        own = leaves if base is None else leaves.plus(base)
        return reference.run_leaves(x, leaf_TK, own, name, None), x.new_empty(x.shape[0], len(weight), 0), leaf_TK
    y, path = reference.tree_feedforward(x, weight, bias, out, leaves, base, activation=name, gradient="none")
    return y, path.logits, path.leaf


def indexed(x: Tensor, index: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    """As the operator `fastff::indexed` where nothing learns."""
    w1, b1, w2, b2, gate, mask, activation, _ = inputs
    name = activation_name(activation)
    y = indexed_reference.indexed_feedforward(x, index, w1, b1, w2, b2, activation=name, gate=gate, mask=mask)
    return y, x.new_empty(0, index.shape[1], w1.shape[1], dtype=torch.float32)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.fastff.cmm_in.default: cmm_in,
    torch.ops.fastff.cmm_out.default: cmm_out,
    torch.ops.fastff.descend.default: descend,
    torch.ops.fastff.tree_infer.default: tree_infer,
    torch.ops.fastff.indexed.default: indexed,
}
