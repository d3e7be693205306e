"""Sums of the rows on each slot's way, each row times its own factor: the output, and the gradient of the input."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import (
    ANCESTORS,
    LEAVES,
    NODES,
    multiply,
    place_factors,
    read_tile,
    read_way,
    rows_of,
)
from fastff.ops.triton.kernels.turn import await_turn

_NODES, _LEAVES, _ANCESTORS = tl.constexpr(NODES), tl.constexpr(LEAVES), tl.constexpr(ANCESTORS)


@triton.jit
def _add_rows(total, a, weight, row, exists, o, features):
    """total (BT, BO) + a (BT, C) times the features o (BO,) of rows (C,) of weight (rows, features)."""
    there = exists[:, None] & (o < features)[None, :]
    return multiply(a, tl.load(weight + row[:, None] * features + o[None, :], mask=there, other=0.0), total)


@triton.jit
def spread(
    node_factor, node_weight, leaf_factor, mask, leaf_weight, leaf_bias, y, slot, here, group, way, features, begin,
    end,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NODE_SIDES: tl.constexpr,
    LEAF_SIDES: tl.constexpr, ACTIVATION: tl.constexpr, MASKED: tl.constexpr, BIAS: tl.constexpr,
    NODE_ENTRIES: tl.constexpr, LEAF_ENTRIES: tl.constexpr, LEAF_COLUMNS: tl.constexpr, CA: tl.constexpr,
    CN: tl.constexpr, CL: tl.constexpr, CB: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr,
):
    """y (slots, features), the features from `begin` to `end`: over the nodes of a way and the neurons of its leaf the
    sum of amplitude(factor) * row, plus the bias of the leaf. NODE_SIDES or LEAF_SIDES is 0 where there is nothing to
    add; CA, CN, CL and CB are the columns of ancestors, nodes, neurons and leaves that are multiplied at a time.

    The factors lie in registers while all features pass, but for leaves of more than CL columns.
    """
    if NODE_SIDES > 0:
        if FIRST > 0:
            above, is_above = rows_of(tl.arange(0, CA), group, _ANCESTORS, FIRST, LEVELS, DEPTH, 1, NODE_SIDES)
            of_above = place_factors(
                node_factor, mask, node_factor, slot, here, way, group, tl.arange(0, CA), DEPTH,
                _ANCESTORS, FIRST, LEVELS, DEPTH, 1, NODE_SIDES, ACTIVATION, False, 0,
            ).to(node_weight.dtype.element_ty)
        node, is_node = rows_of(tl.arange(0, CN), group, _NODES, FIRST, LEVELS, DEPTH, 1, NODE_SIDES)
        of_node = place_factors(
            node_factor, mask, node_factor, slot, here, way, group, tl.arange(0, CN), DEPTH,
            _NODES, FIRST, LEVELS, DEPTH, 1, NODE_SIDES, ACTIVATION, False, NODE_ENTRIES,
        ).to(node_weight.dtype.element_ty)
    if LEAF_SIDES > 0 and LEAF_COLUMNS <= CL:
        neuron, is_neuron = rows_of(tl.arange(0, CL), group, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES)
        of_neuron = place_factors(
            leaf_factor, mask, leaf_factor, slot, here, way, group, tl.arange(0, CL), WIDTH,
            _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES, ACTIVATION, MASKED, LEAF_ENTRIES,
        ).to(leaf_weight.dtype.element_ty)
    if BIAS:
        own_leaf, is_leaf = rows_of(tl.arange(0, CB), group, _LEAVES, FIRST, LEVELS, DEPTH, 1, 1)
        is_own = here[:, None] & (way[:, None] == tl.arange(0, CB)[None, :])
        of_leaf = tl.where(is_own, 1.0, 0.0).to(leaf_bias.dtype.element_ty)
    for start in range(begin, end, BO):
        o = start + tl.arange(0, BO)
        total = tl.zeros([BT, BO], tl.float32)
        if NODE_SIDES > 0:
            if FIRST > 0:
                total = _add_rows(total, of_above, node_weight, above, is_above, o, features)
            total = _add_rows(total, of_node, node_weight, node, is_node, o, features)
        if LEAF_SIDES > 0:
            if LEAF_COLUMNS <= CL:
                total = _add_rows(total, of_neuron, leaf_weight, neuron, is_neuron, o, features)
            else:
                for first in range(0, LEAF_COLUMNS, CL):
                    column = first + tl.arange(0, CL)
                    row, exists = rows_of(column, group, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES)
                    a = place_factors(
                        leaf_factor, mask, leaf_factor, slot, here, way, group, column, WIDTH,
                        _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES, ACTIVATION, MASKED, LEAF_ENTRIES,
                    ).to(leaf_weight.dtype.element_ty)
                    total = _add_rows(total, a, leaf_weight, row, exists, o, features)
        if BIAS:
            total = _add_rows(total, of_leaf, leaf_bias, own_leaf, is_leaf, o, features)
        there = here[:, None] & (o < features)[None, :]
        tl.store(y + slot[:, None] * features + o[None, :], total.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["count"])
def spread_block(
    node_factor, node_weight, leaf_factor, mask, leaf_weight, leaf_bias, y, features, share, tiles, order, leaf, count,
    trees,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NODE_SIDES: tl.constexpr,
    LEAF_SIDES: tl.constexpr, ACTIVATION: tl.constexpr, MASKED: tl.constexpr, BIAS: tl.constexpr,
    NODE_ENTRIES: tl.constexpr, LEAF_ENTRIES: tl.constexpr, LEAF_COLUMNS: tl.constexpr, CA: tl.constexpr,
    CN: tl.constexpr, CL: tl.constexpr, CB: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr, ORDER: tl.constexpr,
    EARLY: tl.constexpr,
):
    """`spread` for a tile of slots, and `share` of the features."""
    await_turn(EARLY)
    slot, here, group = read_tile(tl.program_id(0), tiles, order, count, trees, BT, ORDER)
    if group < 0:
        return
    way = read_way(leaf, slot, here, 0, LEVELS)
    begin = tl.program_id(1) * share
    spread(
        node_factor, node_weight, leaf_factor, mask, leaf_weight, leaf_bias, y, slot, here, group, way, features,
        begin, tl.minimum(begin + share, features),
        FIRST, LEVELS, DEPTH, WIDTH, NODE_SIDES, LEAF_SIDES, ACTIVATION, MASKED, BIAS, NODE_ENTRIES, LEAF_ENTRIES,
        LEAF_COLUMNS, CA, CN, CL, CB, BT, BO,
    )


@triton.jit(do_not_specialize=["tokens"])
def add_parts(
    parts, gate, y, tokens, trees, features,
    GATED: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr, EARLY: tl.constexpr,
):
    """y (tokens, features): the sum of parts (tokens, trees, features), times gate (tokens, trees), in their order."""
    await_turn(EARLY)
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    there = (t < tokens)[:, None] & (o < features)[None, :]
    total = tl.zeros([BT, BO], tl.float32)
    for k in range(trees):
        part = tl.load(parts + (t[:, None] * trees + k) * features + o[None, :], mask=there, other=0.0)
        if GATED:
            part *= tl.load(gate + t * trees + k, mask=t < tokens, other=0.0).to(tl.float32)[:, None]
        total += part
    tl.store(y + t[:, None] * features + o[None, :], total.to(y.dtype.element_ty), mask=there)
