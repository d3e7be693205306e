"""Conditional matrix multiplication on a CPU: tokens are grouped by block, and each block is one matrix product.

The products of `reference.py` that gain by it. Where a block has several rows and several tokens, the reference reads
the block once for every token, this reads it once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastff.ops.cmm import reference


def cmm_in(x_TI: Tensor, weight_BWI: Tensor, index_TS: Tensor) -> Tensor:
    T, S = index_TS.shape
    B, W, _ = weight_BWI.shape
    if not _grouping_pays(index_TS, B, W):
        return reference.cmm_in(x_TI, weight_BWI, index_TS)
    out_RW = x_TI.new_empty(T * S, W)
    for block, places in _groups(index_TS, B):
        out_RW[places] = x_TI[places // S] @ weight_BWI[block].T
    return out_RW.view(T, S, W)


def cmm_outer(a_TSW: Tensor, x_TI: Tensor, index_TS: Tensor, blocks: int) -> Tensor:
    T, S, W = a_TSW.shape
    if not _grouping_pays(index_TS, blocks, W):
        return reference.cmm_outer(a_TSW, x_TI, index_TS, blocks)
    a_RW = a_TSW.reshape(T * S, W)
    out_BWI = x_TI.new_zeros(blocks, W, x_TI.shape[1])
    for block, places in _groups(index_TS, blocks):
        torch.mm(a_RW[places].T, x_TI[places // S], out=out_BWI[block])
    return out_BWI


def _grouping_pays(index_TS: Tensor, blocks: int, rows: int) -> bool:
    """Whether the fixed cost of one product a block is repaid: several rows, and at least two tokens a block."""
    return rows > 1 and index_TS.numel() >= 2 * blocks


def _groups(index_TS: Tensor, blocks: int) -> Iterator[tuple[int, Tensor]]:
    """Yields (block, places in the flattened index that name it), leaving out the blocks that no token names."""
    index = index_TS.flatten()
    order = index.argsort(stable=True)
    counts = torch.bincount(index, minlength=blocks)
    for block, places in enumerate(order.split(counts.tolist())):
        if places.numel():
            yield block, places
