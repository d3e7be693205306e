"""Products of each slot's token with the rows on its way, out of the products with all rows of the block."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import (
    ANCESTORS,
    LEAVES,
    NODES,
    multiply,
    read_columns,
    read_features,
    read_rows,
    read_tile,
    store_own,
    tokens_times_rows,
)

_NODES, _LEAVES, _ANCESTORS = tl.constexpr(NODES), tl.constexpr(LEAVES), tl.constexpr(ANCESTORS)


@triton.jit
def hidden_block(
    x, w1, b1, tiles, order, leaf, hidden, count, trees, features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, BT: tl.constexpr,
    C: tl.constexpr, BI: tl.constexpr, ORDER: tl.constexpr,
):
    """hidden (slots, WIDTH): x times the rows of w1 of each slot's leaf, plus b1."""
    slot, here, group = read_tile(tl.program_id(0), tiles, order, leaf, count, trees, FIRST, DEPTH - FIRST, BT, ORDER)
    if group < 0:
        return
    column = tl.program_id(1) * C + tl.arange(0, C)
    row, _, _, exists, _, _ = read_columns(column, group, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, 1)
    z = tokens_times_rows(x, slot // trees, here, w1, row, exists, features, BT, C, BI)
    z += tl.load(b1 + row, mask=exists, other=0.0).to(tl.float32)[None, :]
    way = tl.load(leaf + slot, mask=here, other=0).to(tl.int32) & ((1 << LEVELS) - 1)
    store_own(hidden, z, hidden, slot, here, way, group, column, WIDTH, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, 1)


@triton.jit
def gain_block(
    grad_y, node_out, w2, b2, tiles, order, leaf, logits, hidden, node_gain, leaf_gain, bias_gain, count, trees,
    features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NODE_SIDES: tl.constexpr,
    LEAF_SIDES: tl.constexpr, ABOVE: tl.constexpr, CN: tl.constexpr, CL: tl.constexpr, CB: tl.constexpr,
    BT: tl.constexpr, BI: tl.constexpr, ORDER: tl.constexpr,
):
    """What grad_y gains by the output rows on each slot's way: node_gain (slots, DEPTH), leaf_gain (slots, WIDTH) and
    bias_gain (slots,); of two rows of a neuron by that of the side of its logit.

    NODE_SIDES and LEAF_SIDES are 0 where there are no such rows; ABOVE, CN, CL and CB are the columns of ancestors,
    nodes, neurons and leaves that a program takes. The neurons may need several programs; the first one does the rest.
    """
    slot, here, group = read_tile(tl.program_id(0), tiles, order, leaf, count, trees, FIRST, DEPTH - FIRST, BT, ORDER)
    if group < 0:
        return
    token = slot // trees
    nodes, above, leaves = tl.arange(0, CN), tl.arange(0, ABOVE), tl.arange(0, CB)
    neurons = tl.program_id(1) * CL + tl.arange(0, CL)
    if NODE_SIDES > 0:
        node_row, _, _, is_node, _, _ = read_columns(nodes, group, _NODES, FIRST, LEVELS, DEPTH, 1, NODE_SIDES)
        above_row, _, _, is_above, _, _ = read_columns(above, group, _ANCESTORS, FIRST, LEVELS, DEPTH, 1, NODE_SIDES)
    if LEAF_SIDES > 0:
        leaf_row, _, _, is_neuron, _, _ = read_columns(neurons, group, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES)
        bias_row, _, _, is_leaf, _, _ = read_columns(leaves, group, _LEAVES, FIRST, LEVELS, DEPTH, 1, 1)
    by_nodes = tl.zeros([BT, CN], tl.float32)
    by_above = tl.zeros([BT, ABOVE], tl.float32)
    by_neurons = tl.zeros([BT, CL], tl.float32)
    by_biases = tl.zeros([BT, CB], tl.float32)
    for start in range(0, features, BI):
        i = start + tl.arange(0, BI)
        g = read_features(grad_y, token, here, i, features)
        if NODE_SIDES > 0:
            by_nodes = multiply(g, read_rows(node_out, node_row, is_node, i, features), by_nodes)
            if FIRST > 0:
                by_above = multiply(g, read_rows(node_out, above_row, is_above, i, features), by_above)
        if LEAF_SIDES > 0:
            by_neurons = multiply(g, read_rows(w2, leaf_row, is_neuron, i, features), by_neurons)
            by_biases = multiply(g, read_rows(b2, bias_row, is_leaf, i, features), by_biases)
    way = tl.load(leaf + slot, mask=here, other=0).to(tl.int32) & ((1 << LEVELS) - 1)
    if LEAF_SIDES > 0:
        store_own(
            leaf_gain, by_neurons, hidden, slot, here, way, group, neurons, WIDTH,
            _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES,
        )
    if tl.program_id(1) == 0:
        if LEAF_SIDES > 0:
            store_own(
                bias_gain, by_biases, hidden, slot, here, way, group, leaves, 1, _LEAVES, FIRST, LEVELS, DEPTH, 1, 1
            )
        if NODE_SIDES > 0:
            store_own(
                node_gain, by_nodes, logits, slot, here, way, group, nodes, DEPTH,
                _NODES, FIRST, LEVELS, DEPTH, 1, NODE_SIDES,
            )
            if FIRST > 0:
                store_own(
                    node_gain, by_above, logits, slot, here, way, group, above, DEPTH,
                    _ANCESTORS, FIRST, LEVELS, DEPTH, 1, NODE_SIDES,
                )
