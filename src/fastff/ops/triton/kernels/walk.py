"""What the sides not taken would have put out: walkers that leave a slot's way and go on by their own decisions.

A walker begins at the other child of a level's node. At each block that it meets it stands at one of the nodes; the
worth of a node is what grad_y gains on the way from there to the bottom of the block, and follows from the worth of the
child to which the node's own decision leads, from the bottom up, for all nodes at once.
"""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import (
    LEAVES,
    NODES,
    activate,
    multiply,
    read_features,
    read_rows,
    read_tile,
    read_way,
    rows_of,
    tokens_times_rows,
)
from fastff.ops.triton.kernels.turn import await_turn

_NODES, _LEAVES = tl.constexpr(NODES), tl.constexpr(LEAVES)


@triton.jit(do_not_specialize=["count"])
def walk_block(
    x, node_weight, node_bias, grad_y, node_out, tiles, order, place, leaf, levels, worth, end, count, trees,
    features, out_features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, SIDES: tl.constexpr, ACTIVATION: tl.constexpr,
    WALKERS: tl.constexpr, DRAWN: tl.constexpr, BEGIN: tl.constexpr, BT: tl.constexpr, C: tl.constexpr,
    BI: tl.constexpr, ORDER: tl.constexpr, EARLY: tl.constexpr,
):
    """Take walkers through a block: add to worth (slots, WALKERS) what they gain, set end (slots, WALKERS) int64, the
    leaf as far as it is decided.

    WALKERS is DEPTH, one of each level, or 1 if DRAWN: of the level that `levels` (slots,) names. BEGIN: slots on
    their own way (`leaf`), whose walkers of the block's levels set out; otherwise walkers that come from above,
    numbered slot * WALKERS + walker in `order`.
    """
    await_turn(EARLY)
    below: tl.constexpr = DEPTH - FIRST
    number, here, group = read_tile(tl.program_id(0), tiles, order, count, trees, BT, ORDER)
    if group < 0:
        return
    slot = number if BEGIN else number // WALKERS
    token = slot // trees
    column = tl.arange(0, C)
    row, exists = rows_of(column, group, _NODES, FIRST, LEVELS, DEPTH, 1, 1)
    z = tokens_times_rows(x, token, here, node_weight, row, exists, features, BT, C, BI)
    z += tl.load(node_bias + row, mask=exists, other=0.0).to(tl.float32)[None, :]
    right = z >= 0
    node = column[None, :] + tl.zeros([BT, C], tl.int32)
    child = tl.minimum(2 * node + 1 + right.to(tl.int32), C - 1)
    inner = (column < (1 << (LEVELS - 1)) - 1)[None, :]  # whose children are nodes of the block
    own = _gain(z, token, here, grad_y, node_out, row, exists, out_features, SIDES, ACTIVATION, BT, C, BI)
    sums = own
    exits = 2 * node + 1 + right.to(tl.int32) - ((1 << LEVELS) - 1)  # of the lowest nodes
    for _ in tl.static_range(LEVELS - 1):
        sums = own + tl.where(inner, tl.gather(sums, child, 1), 0.0)
        exits = tl.where(inner, tl.gather(exits, child, 1), exits)
    prefix = (group & ((1 << FIRST) - 1)) << LEVELS
    if BEGIN:
        way = read_way(leaf, slot, here, below - LEVELS, LEVELS)
        for level in tl.static_range(LEVELS):
            # the other child of this level's node, numbered in its level, and in the block
            aside = (way >> (LEVELS - 1 - level)) ^ 1
            if level + 1 < LEVELS:
                start = (2 << level) - 1 + aside
                there = column[None, :] == start[:, None]
                gained = tl.sum(tl.where(there, sums, 0.0), 1)
                reached = tl.sum(tl.where(there, exits, 0), 1)
            else:
                gained = tl.zeros([BT], tl.float32)
                reached = aside
            at = slot
            sets_out = here
            if DRAWN:
                sets_out = here & (tl.load(levels + slot, mask=here, other=-1) == FIRST + level)
            else:
                at = slot * WALKERS + FIRST + level
            tl.store(worth + at, gained, mask=sets_out)
            tl.store(end + at, (prefix + reached).to(tl.int64) << (below - LEVELS), mask=sets_out)
    else:
        first = (column == 0)[None, :]
        gained = tl.sum(tl.where(first, sums, 0.0), 1) + tl.load(worth + number, mask=here, other=0.0)
        reached = tl.sum(tl.where(first, exits, 0), 1)
        tl.store(worth + number, gained, mask=here)
        tl.store(end + number, (prefix + reached).to(tl.int64) << (below - LEVELS), mask=here)


@triton.jit(do_not_specialize=["count"])
def walk_leaves(
    x, w1, b1, grad_y, w2, b2, tiles, order, place, worth, count, trees, features, out_features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, SIDES: tl.constexpr,
    ACTIVATION: tl.constexpr, WALKERS: tl.constexpr, COLUMNS: tl.constexpr, BT: tl.constexpr, C: tl.constexpr,
    CB: tl.constexpr, BI: tl.constexpr, ORDER: tl.constexpr, EARLY: tl.constexpr,
):
    """Add to worth (slots, WALKERS) what the leaves gain in which walkers ended; `place` says which.

    COLUMNS: hidden neurons of a block; CB: at least its leaves, 16 or more.
    """
    await_turn(EARLY)
    number, here, group = read_tile(tl.program_id(0), tiles, order, count, trees, BT, ORDER)
    if group < 0:
        return
    token = number // WALKERS // trees
    way = read_way(place, number, here, 0, LEVELS)
    child = tl.arange(0, CB)
    own_leaf, is_leaf = rows_of(child, group, _LEAVES, FIRST, LEVELS, DEPTH, 1, 1)
    gain = tokens_times_rows(grad_y, token, here, b2, own_leaf, is_leaf, out_features, BT, CB, BI)
    gained = tl.sum(tl.where(way[:, None] == child[None, :], gain, 0.0), 1)
    for start in range(0, COLUMNS, C):
        column = start + tl.arange(0, C)
        row, exists = rows_of(column, group, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, 1)
        z = tokens_times_rows(x, token, here, w1, row, exists, features, BT, C, BI)
        z += tl.load(b1 + row, mask=exists, other=0.0).to(tl.float32)[None, :]
        own = _gain(z, token, here, grad_y, w2, row, exists, out_features, SIDES, ACTIVATION, BT, C, BI)
        gained += tl.sum(tl.where(way[:, None] == (column // WIDTH)[None, :], own, 0.0), 1)
    tl.store(worth + number, gained + tl.load(worth + number, mask=here, other=0.0), mask=here)


@triton.jit
def _gain(
    z, token, here, grad_y, weight, row, exists, features,
    SIDES: tl.constexpr, ACTIVATION: tl.constexpr, BT: tl.constexpr, C: tl.constexpr, BI: tl.constexpr,
):
    """grad_y . what the neurons of these rows, with these logits (BT, C), put out; 0 if SIDES is 0."""
    if SIDES == 1:
        gain = tokens_times_rows(grad_y, token, here, weight, row, exists, features, BT, C, BI)
        own = activate(z, ACTIVATION) * gain
    elif SIDES == 2:
        left = tl.zeros([BT, C], tl.float32)
        right = tl.zeros([BT, C], tl.float32)
        for start in range(0, features, BI):
            i = start + tl.arange(0, BI)
            g = read_features(grad_y, token, here, i, features)
            left = multiply(g, read_rows(weight, 2 * row, exists, i, features), left)
            right = multiply(g, read_rows(weight, 2 * row + 1, exists, i, features), right)
        own = tl.abs(z) * tl.where(z >= 0, right, left)
    else:
        own = tl.zeros([BT, C], tl.float32)
    return own
