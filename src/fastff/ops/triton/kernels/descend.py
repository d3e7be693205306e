"""Routing through one block: all logits of the subtree at once, then each slot's way among them."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import NODES, read_columns, read_tile, tokens_times_rows

_NODES = tl.constexpr(NODES)


@triton.jit
def descend_block(
    x, weight, bias, tiles, order, logits, leaf, count, trees, features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, BT: tl.constexpr, C: tl.constexpr,
    BI: tl.constexpr, ORDER: tl.constexpr,
):
    """Logits (slots, DEPTH) of levels FIRST .. FIRST + LEVELS - 1 and the leaf (slots,) as far as it is decided, its
    further bits 0.
    """
    below: tl.constexpr = DEPTH - FIRST
    slot, here, group = read_tile(tl.program_id(0), tiles, order, leaf, count, trees, FIRST, below, BT, ORDER)
    if group < 0:
        return
    column = tl.arange(0, C)
    row, _, _, exists, _, _ = read_columns(column, group, _NODES, FIRST, LEVELS, DEPTH, 1, 1)
    z = tokens_times_rows(x, slot // trees, here, weight, row, exists, features, BT, C, BI)
    z += tl.load(bias + row, mask=exists, other=0.0).to(tl.float32)[None, :]
    node = tl.zeros([BT], tl.int32)
    for level in tl.static_range(LEVELS):
        logit = tl.sum(tl.where(column[None, :] == node[:, None], z, 0.0), 1)
        tl.store(logits + slot * DEPTH + FIRST + level, logit, mask=here)
        node = 2 * node + 1 + (logit >= 0).to(tl.int32)
    way = (group & ((1 << FIRST) - 1)) * (1 << LEVELS) + node - ((1 << LEVELS) - 1)
    tl.store(leaf + slot, way.to(tl.int64) << (below - LEVELS), mask=here)
