"""Routing through one block: all logits of the subtree at once, then each slot's way among them."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import (
    LEAVES,
    NODES,
    multiply,
    read_features,
    read_rows,
    read_tile,
    rows_of,
    store_own,
)
from fastff.ops.triton.kernels.turn import await_turn

_NODES, _LEAVES = tl.constexpr(NODES), tl.constexpr(LEAVES)


@triton.jit
def descend(
    x, weight, bias, w1, b1, logits, hidden, slot, here, group, trees, features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr,
    BT: tl.constexpr, C: tl.constexpr, CL: tl.constexpr, BI: tl.constexpr,
):
    """Through which exit (BT,) of the block of `group` the slots (BT,) leave it, 0 the leftmost.

    Sets their logits (slots, DEPTH) of levels FIRST .. FIRST + LEVELS - 1. If WIDTH is not 0, the block reaches the
    leaves, and hidden (slots, WIDTH) is set to x times the rows of w1 of the leaf, plus b1.
    """
    token = slot // trees
    column = tl.arange(0, C)
    row, exists = rows_of(column, group, _NODES, FIRST, LEVELS, DEPTH, 1, 1)
    if WIDTH > 0:
        neuron, is_neuron = rows_of(tl.arange(0, CL), group, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, 1)
    z = tl.zeros([BT, C], tl.float32)
    h = tl.zeros([BT, CL], tl.float32)
    for start in range(0, features, BI):
        i = start + tl.arange(0, BI)
        tokens = read_features(x, token, here, i, features)
        z = multiply(tokens, read_rows(weight, row, exists, i, features), z)
        if WIDTH > 0:
            h = multiply(tokens, read_rows(w1, neuron, is_neuron, i, features), h)
    z += tl.load(bias + row, mask=exists, other=0.0).to(tl.float32)[None, :]
    node = tl.zeros([BT], tl.int32)
    for level in tl.static_range(LEVELS):
        logit = tl.sum(tl.where(column[None, :] == node[:, None], z, 0.0), 1)
        tl.store(logits + slot * DEPTH + FIRST + level, logit, mask=here)
        node = 2 * node + 1 + (logit >= 0).to(tl.int32)
    way = node - ((1 << LEVELS) - 1)
    if WIDTH > 0:
        h += tl.load(b1 + neuron, mask=is_neuron, other=0.0).to(tl.float32)[None, :]
        store_own(
            hidden, h, hidden, slot, here, way, group, 0, WIDTH, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, 1, CL, P
        )
    return way


@triton.jit(do_not_specialize=["count"])
def descend_block(
    x, weight, bias, w1, b1, tiles, order, logits, leaf, hidden, counts, count, trees, features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr,
    BT: tl.constexpr, C: tl.constexpr, CL: tl.constexpr, BI: tl.constexpr, ORDER: tl.constexpr,
    COUNTED: tl.constexpr, EARLY: tl.constexpr,
):
    """`descend` for a tile of slots; the leaf (slots,) is set as far as it is decided, its further bits 0.

    COUNTED: slots are those of one tree, in their own order, and counts (tiles, 1 << LEVELS) int32 is set to how many
    of each tile leave through each exit, as `count_keys` would count them.
    """
    await_turn(EARLY)
    slot, here, group = read_tile(tl.program_id(0), tiles, order, count, trees, BT, ORDER)
    if group < 0:
        return
    way = descend(
        x, weight, bias, w1, b1, logits, hidden, slot, here, group, trees, features,
        FIRST, LEVELS, DEPTH, WIDTH, P, BT, C, CL, BI,
    )
    if COUNTED:
        exit = tl.arange(0, 1 << LEVELS)
        leave = here[:, None] & (way[:, None] == exit[None, :])
        tl.store(counts + (tl.program_id(0) << LEVELS) + exit, tl.sum(leave.to(tl.int32), 0))
    way += (group & ((1 << FIRST) - 1)) << LEVELS
    tl.store(leaf + slot, way.to(tl.int64) << (DEPTH - FIRST - LEVELS), mask=here)
