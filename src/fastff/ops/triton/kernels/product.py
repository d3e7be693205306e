"""Products of each slot's token with the rows on its way, out of the products with all rows of the block."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import (
    ANCESTORS,
    LEAVES,
    NODES,
    multiply,
    read_features,
    read_rows,
    read_tile,
    read_way,
    rows_of,
    store_own,
    tokens_times_rows,
)
from fastff.ops.triton.kernels.turn import await_turn

_NODES, _LEAVES, _ANCESTORS = tl.constexpr(NODES), tl.constexpr(LEAVES), tl.constexpr(ANCESTORS)


@triton.jit
def hidden_neurons(
    x, w1, b1, hidden, slot, here, group, way, begin, trees, features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr,
    BT: tl.constexpr, C: tl.constexpr, BI: tl.constexpr,
):
    """hidden (slots, WIDTH): x times the rows of w1 of each slot's leaf, plus b1, of C columns from `begin` on."""
    row, exists = rows_of(begin + tl.arange(0, C), group, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, 1)
    z = tokens_times_rows(x, slot // trees, here, w1, row, exists, features, BT, C, BI)
    z += tl.load(b1 + row, mask=exists, other=0.0).to(tl.float32)[None, :]
    store_own(hidden, z, hidden, slot, here, way, group, begin, WIDTH, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, 1, C, P)


@triton.jit(do_not_specialize=["count"])
def hidden_block(
    x, w1, b1, tiles, order, leaf, hidden, count, trees, features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr,
    BT: tl.constexpr, C: tl.constexpr, BI: tl.constexpr, ORDER: tl.constexpr, EARLY: tl.constexpr,
):
    """`hidden_neurons` for a tile of slots."""
    await_turn(EARLY)
    slot, here, group = read_tile(tl.program_id(0), tiles, order, count, trees, BT, ORDER)
    if group < 0:
        return
    way = read_way(leaf, slot, here, 0, LEVELS)
    hidden_neurons(
        x, w1, b1, hidden, slot, here, group, way, tl.program_id(1) * C, trees, features,
        FIRST, LEVELS, DEPTH, WIDTH, P, BT, C, BI,
    )


@triton.jit(do_not_specialize=["count"])
def gain_block(
    grad_y, node_out, w2, b2, tiles, order, leaf, logits, hidden, node_gain, leaf_gain, bias_gain, count, trees,
    features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NODE_SIDES: tl.constexpr,
    LEAF_SIDES: tl.constexpr, NODE_ENTRIES: tl.constexpr, LEAF_ENTRIES: tl.constexpr, CA: tl.constexpr,
    CN: tl.constexpr, CL: tl.constexpr, CB: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr, ORDER: tl.constexpr,
    EARLY: tl.constexpr,
):
    """What grad_y gains by the output rows on each slot's way: node_gain (slots, DEPTH), leaf_gain (slots, WIDTH) and
    bias_gain (slots,); of two rows of a neuron by that of the side of its logit.

    NODE_SIDES and LEAF_SIDES are 0 where there are no such rows; CA, CN, CL and CB are the columns of ancestors, nodes,
    neurons and leaves that a program takes. The neurons may need several programs; the first one does the rest.
    """
    await_turn(EARLY)
    slot, here, group = read_tile(tl.program_id(0), tiles, order, count, trees, BT, ORDER)
    if group < 0:
        return
    token = slot // trees
    begin = tl.program_id(1) * CL
    if NODE_SIDES > 0:
        node, is_node = rows_of(tl.arange(0, CN), group, _NODES, FIRST, LEVELS, DEPTH, 1, NODE_SIDES)
        above, is_above = rows_of(tl.arange(0, CA), group, _ANCESTORS, FIRST, LEVELS, DEPTH, 1, NODE_SIDES)
    if LEAF_SIDES > 0:
        neuron, is_neuron = rows_of(
            begin + tl.arange(0, CL), group, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES
        )
        own_leaf, is_leaf = rows_of(tl.arange(0, CB), group, _LEAVES, FIRST, LEVELS, DEPTH, 1, 1)
    by_node = tl.zeros([BT, CN], tl.float32)
    by_above = tl.zeros([BT, CA], tl.float32)
    by_neuron = tl.zeros([BT, CL], tl.float32)
    by_bias = tl.zeros([BT, CB], tl.float32)
    for start in range(0, features, BI):
        i = start + tl.arange(0, BI)
        g = read_features(grad_y, token, here, i, features)
        if NODE_SIDES > 0:
            by_node = multiply(g, read_rows(node_out, node, is_node, i, features), by_node)
            if FIRST > 0:
                by_above = multiply(g, read_rows(node_out, above, is_above, i, features), by_above)
        if LEAF_SIDES > 0:
            by_neuron = multiply(g, read_rows(w2, neuron, is_neuron, i, features), by_neuron)
            by_bias = multiply(g, read_rows(b2, own_leaf, is_leaf, i, features), by_bias)
    way = read_way(leaf, slot, here, 0, LEVELS)
    if LEAF_SIDES > 0:
        store_own(
            leaf_gain, by_neuron, hidden, slot, here, way, group, begin, WIDTH,
            _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES, CL, LEAF_ENTRIES,
        )
    if tl.program_id(1) == 0:
        if LEAF_SIDES > 0:
            store_own(
                bias_gain, by_bias, hidden, slot, here, way, group, 0, 1, _LEAVES, FIRST, LEVELS, DEPTH, 1, 1, CB, 4
            )
        if NODE_SIDES > 0:
            store_own(
                node_gain, by_node, logits, slot, here, way, group, 0, DEPTH,
                _NODES, FIRST, LEVELS, DEPTH, 1, NODE_SIDES, CN, NODE_ENTRIES,
            )
            if FIRST > 0:
                store_own(
                    node_gain, by_above, logits, slot, here, way, group, 0, DEPTH,
                    _ANCESTORS, FIRST, LEVELS, DEPTH, 1, NODE_SIDES, CA, 0,
                )
