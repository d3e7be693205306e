"""Conditional matrix multiplication on a CPU: tokens are sorted by block, and each block is one matrix product.

The products of `reference.py` that gain by it. Where a block has several rows and several tokens, the reference reads
the block once for every token, this reads it once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastff.ops.cmm import reference

SORTED = 1 << 22  # elements of sorted tokens held at a time: 16 MB of float32; fewer would make the products small


def cmm_in(x_TI: Tensor, weight_BWI: Tensor, index_TS: Tensor) -> Tensor:
    T, S = index_TS.shape
    B, W, I = weight_BWI.shape
    if not _sorting_pays(index_TS, B, W):
        return reference.cmm_in(x_TI, weight_BWI, index_TS)
    out_TSW = x_TI.new_empty(T, S, W)
    for t in reference.token_groups(T, S * I, SORTED):
        order, blocks = _sort(index_TS[t], B)
        x_RI = x_TI[t].index_select(0, order // S)
        h_RW = x_TI.new_empty(len(order), W)
        for block, rows in blocks:
            torch.mm(x_RI[rows], weight_BWI[block].T, out=h_RW[rows])
        out_TSW[t].view(-1, W)[order] = h_RW
    return out_TSW


def cmm_outer(a_TSW: Tensor, x_TI: Tensor, index_TS: Tensor, blocks: int) -> Tensor:
    T, S, W = a_TSW.shape
    I = x_TI.shape[1]
    if not _sorting_pays(index_TS, blocks, W):
        return reference.cmm_outer(a_TSW, x_TI, index_TS, blocks)
    sum_dtype = torch.promote_types(x_TI.dtype, torch.float32)  # more than one group of tokens may add to a block
    out_BWI = x_TI.new_zeros(blocks, W, I, dtype=sum_dtype)
    for t in reference.token_groups(T, S * I, SORTED):
        order, named = _sort(index_TS[t], blocks)
        x_RI = x_TI[t].index_select(0, order // S).to(sum_dtype)
        a_RW = a_TSW[t].reshape(-1, W).index_select(0, order).to(sum_dtype)
        for block, rows in named:
            out_BWI[block].addmm_(a_RW[rows].T, x_RI[rows])
    return out_BWI.to(x_TI.dtype)


def _sorting_pays(index_TS: Tensor, blocks: int, rows: int) -> bool:
    """Whether the fixed cost of one product a block is repaid: several rows, and at least two tokens a block."""
    return rows >= 4 and index_TS.numel() >= 2 * blocks


def _sort(index_TS: Tensor, blocks: int) -> tuple[Tensor, Iterator[tuple[int, slice]]]:
    """The order that brings equal blocks together, and each block that is named with its rows in that order."""
    index = index_TS.flatten()
    counts = torch.bincount(index, minlength=blocks).tolist()

    def named() -> Iterator[tuple[int, slice]]:
        start = 0
        for block, count in enumerate(counts):
            if count:
                yield block, slice(start, start + count)
            start += count

    return index.argsort(stable=True), named()
