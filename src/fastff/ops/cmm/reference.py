"""Conditional matrix multiplication (CMM, P2 section 3) on blocks of rows: the definition, on any device.

A weight is B blocks of W rows; each token names S blocks, and only those are multiplied. A block is a node's row
(W = 1), a leaf, or an expert. The three products are closed under differentiation: the gradients of each are the
other two. They are PyTorch's embedding bag and its two gradients: no rows are gathered into memory, there is no loop
over tokens, and no value is read back to the host. On a CPU a token's bits do not depend on the tokens around it where
rows are aligned alike, I being a multiple of 16 (BLAS sums an unaligned row in another order).

Shapes: T tokens, S blocks a token, B blocks, W rows a block, I columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SUM = 0  # the embedding bag's mode


def cmm_in(x_TI: Tensor, weight_BWI: Tensor, index_TS: Tensor) -> Tensor:
    """h[t, s, w] = weight[index[t, s], w] . x[t]; returns (T, S, W)."""
    T, S = index_TS.shape
    _, W, I = weight_BWI.shape
    if T * S * W == 0:
        return x_TI.new_zeros(T, S, W)
    row_R, bag_R = _rows_and_bags(index_TS, W)
    starts_T = torch.arange(0, T * S * W, S * W, device=x_TI.device)
    dtype = torch.float32 if x_TI.is_cuda and x_TI.dtype == torch.bfloat16 else x_TI.dtype  # CUDA's knows no bfloat16
    product_R = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x_TI.contiguous().to(dtype), weight_BWI.reshape(-1, I).to(dtype), row_R, starts_T, bag_R, SUM
    )
    return product_R.view(T, S, W).to(x_TI.dtype)


def cmm_out(a_TSW: Tensor, weight_BWI: Tensor, index_TS: Tensor) -> Tensor:
    """y[t] = sum over s, w of a[t, s, w] * weight[index[t, s], w]; returns (T, I)."""
    T, S = index_TS.shape
    _, W, I = weight_BWI.shape
    if T * S * W == 0:
        return a_TSW.new_zeros(T, I)
    row_TR = _rows_and_bags(index_TS, W)[0].view(T, S * W)
    return F.embedding_bag(row_TR, weight_BWI.reshape(-1, I), per_sample_weights=a_TSW.reshape(T, S * W), mode="sum")


def cmm_outer(a_TSW: Tensor, x_TI: Tensor, index_TS: Tensor, blocks: int) -> Tensor:
    """m[b, w] = sum over the (t, s) with index[t, s] = b of a[t, s, w] * x[t]; returns (blocks, W, I).

    Low precision is summed in float32 and rounded once.
    """
    T, S, W = a_TSW.shape
    I = x_TI.shape[1]
    if T * S * W == 0 or blocks == 0:
        return x_TI.new_zeros(blocks, W, I)
    sum_dtype = torch.promote_types(x_TI.dtype, torch.float32)
    row_R, bag_R = _rows_and_bags(index_TS, W)
    sizes_T = torch.full((T,), S * W, device=x_TI.device)
    sums = torch.ops.aten._embedding_bag_dense_backward(
        x_TI.contiguous().to(sum_dtype),
        row_R,
        bag_R,
        sizes_T,
        sizes_T[:0],  # of the mode max only
        blocks * W,
        False,
        SUM,
        a_TSW.reshape(-1).to(sum_dtype),
    )
    return sums.view(blocks, W, I).to(x_TI.dtype)


def _rows_and_bags(index_TS: Tensor, W: int) -> tuple[Tensor, Tensor]:
    """For each product, token by token: the row among all blocks' rows, and the token; both (T * S * W,) int64."""
    T, S = index_TS.shape
    row_TSW = index_TS.unsqueeze(-1) * W + torch.arange(W, device=index_TS.device)
    return row_TSW.flatten(), torch.arange(T, device=index_TS.device).repeat_interleave(S * W)
