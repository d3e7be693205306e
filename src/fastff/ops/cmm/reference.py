"""Conditional matrix multiplication (CMM, P2 section 3) on blocks of rows: the definition, on any device.

A weight is B blocks of W rows; each token names S blocks, and only those are multiplied. A block is a node's row
(W = 1), a leaf, or an expert. The three products are closed under differentiation: the gradients of each are the
other two. Tokens are taken in groups, so that the gathered rows never exceed `SCRATCH` elements, whatever T is; no
value is read back to the host.

Shapes: T tokens, S blocks a token, B blocks, W rows a block, I columns.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

SCRATCH = 1 << 18  # elements of gathered rows held at a time: 1 MB of float32, which stays in an L2 cache


def cmm_in(x_TI: Tensor, weight_BWI: Tensor, index_TS: Tensor) -> Tensor:
    """h[t, s, w] = weight[index[t, s], w] . x[t]; returns (T, S, W). Low precision is summed in float32."""
    T, S = index_TS.shape
    _, W, I = weight_BWI.shape
    sum_dtype = torch.promote_types(x_TI.dtype, torch.float32)
    out_TSW = x_TI.new_empty(T, S, W)
    for t in token_groups(T, S * W * I, SCRATCH):
        rows = weight_BWI.index_select(0, index_TS[t].flatten()).view(t.stop - t.start, S, W, I).to(sum_dtype)
        out_TSW[t] = rows.mul_(x_TI[t, None, None]).sum(-1)
    return out_TSW


def cmm_out(a_TSW: Tensor, weight_BWI: Tensor, index_TS: Tensor) -> Tensor:
    """y[t] = sum over s, w of a[t, s, w] * weight[index[t, s], w]; returns (T, I)."""
    T, S = index_TS.shape
    _, W, I = weight_BWI.shape
    if S == 0:  # embedding_bag refuses empty rows
        return a_TSW.new_zeros(T, I)
    row_TSW = index_TS.unsqueeze(-1) * W + torch.arange(W, device=index_TS.device)
    weight_RI = weight_BWI.reshape(-1, I)
    return F.embedding_bag(row_TSW.reshape(T, S * W), weight_RI, per_sample_weights=a_TSW.reshape(T, S * W), mode="sum")


def cmm_outer(a_TSW: Tensor, x_TI: Tensor, index_TS: Tensor, blocks: int) -> Tensor:
    """m[b, w] = sum over the (t, s) with index[t, s] = b of a[t, s, w] * x[t]; returns (blocks, W, I).

    Low precision is summed in float32 and rounded once.
    """
    T, S, W = a_TSW.shape
    I = x_TI.shape[1]
    sum_dtype = torch.promote_types(x_TI.dtype, torch.float32)
    out_BWI = x_TI.new_zeros(blocks, W, I, dtype=sum_dtype)
    for t in token_groups(T, S * W * I, SCRATCH):
        products = a_TSW[t, ..., None].to(sum_dtype) * x_TI[t, None, None]  # (t, S, W, I)
        out_BWI.index_add_(0, index_TS[t].flatten(), products.flatten(0, 1))
    return out_BWI.to(x_TI.dtype)


def token_groups(tokens: int, elements_per_token: int, most: int) -> Iterator[slice]:
    """Slices of the tokens, each of at most `most` elements (but one token at least)."""
    step = max(1, most // max(1, elements_per_token))
    for start in range(0, tokens, step):
        yield slice(start, min(start + step, tokens))
