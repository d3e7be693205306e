"""Routing down a tree as a PyTorch operator: schema, fake, autograd."""

from typing import Any

import torch
from torch import Tensor

from fastff.ops.checks import tree_depth
from fastff.ops.cmm.op import cmm_out, cmm_outer
from fastff.ops.descend import reference


@torch.library.custom_op("fastff::descend", mutates_args=())
def descend(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Follow each of K trees from its root: right where the logit is >= 0, else left (NaN goes left).

    Nodes are numbered breadth first from 0; the children of n are 2n + 1 (left) and 2n + 2 (right).

    Args:
        x: (T, I), floating point.
        weight: (K, N, I), N = 2^D - 1, dtype and device of `x`.
        bias: (K, N).

    Returns:
        logits (T, K, D): `weight[k, n] . x[t] + bias[k, n]` of the nodes on the path, root first; differentiable.
        nodes (T, K, D) int64: those nodes, each in [0, N).

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit together, N that no complete tree has.
    """
    if weight.dim() != 3 or x.dim() != 2 or x.shape[1] != weight.shape[2]:
        raise ValueError(f"x (T, I) and weight (K, N, I) must agree in I, got {tuple(x.shape)}, {tuple(weight.shape)}")
    if bias.shape != weight.shape[:2]:
        raise ValueError(f"bias must be of shape {tuple(weight.shape[:2])}, got {tuple(bias.shape)}")
    if not x.dtype == weight.dtype == bias.dtype:
        raise TypeError(f"x, weight and bias must share a dtype, got {x.dtype}, {weight.dtype}, {bias.dtype}")
    return reference.descend(x, weight, bias)


@descend.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], weight.shape[0], tree_depth(weight.shape[1]))
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, g_TKD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x_TI, weight_KNI, nodes_TKD = ctx.saved_tensors
    K, N, _I = weight_KNI.shape
    row_TS = global_rows(nodes_TKD, N).flatten(1)
    g_TS1 = g_TKD.flatten(1).unsqueeze(-1)
    grad_x = cmm_out(g_TS1, weight_KNI.flatten(0, 1).unsqueeze(1), row_TS) if ctx.needs_input_grad[0] else None
    grad_weight = cmm_outer(g_TS1, x_TI, row_TS, K * N).view_as(weight_KNI) if ctx.needs_input_grad[1] else None
    grad_bias = None
    if ctx.needs_input_grad[2]:
        sums = g_TS1.new_zeros(K * N, dtype=torch.promote_types(g_TS1.dtype, torch.float32))
        grad_bias = sums.index_add_(0, row_TS.flatten(), g_TS1.flatten().to(sums.dtype)).to(g_TS1.dtype).view(K, N)
    return grad_x, grad_weight, grad_bias


descend.register_autograd(_backward, setup_context=_save)


def global_rows(index_TKS: Tensor, per_tree: int) -> Tensor:
    """Number nodes or leaves (second dimension: the tree) through all trees: `index[t, k] + k * per_tree`."""
    trees = torch.arange(index_TKS.shape[1], device=index_TKS.device) * per_tree
    return index_TKS + trees.view(-1, *([1] * (index_TKS.dim() - 2)))
