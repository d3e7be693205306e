"""Sums of the rows on each slot's way, each row times its own factor: the output, and the gradient of the input."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import (
    ANCESTORS,
    LEAVES,
    NODES,
    multiply,
    place_factors,
    read_columns,
    read_tile,
)

_NODES, _LEAVES, _ANCESTORS = tl.constexpr(NODES), tl.constexpr(LEAVES), tl.constexpr(ANCESTORS)


@triton.jit
def _add_rows(total, a, weight, row, exists, o, inside, features):
    """total (BT, BO) + a (BT, C) times the rows (C,) of weight (rows, features)."""
    rows = tl.load(weight + row[:, None] * features + o[None, :], mask=exists[:, None] & inside[None, :], other=0.0)
    return multiply(a.to(rows.dtype), rows, total)


@triton.jit
def spread_block(
    node_factor, node_weight, leaf_factor, gate, leaf_weight, leaf_bias, tiles, order, leaf, y, count, trees,
    features, share,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NODE_SIDES: tl.constexpr,
    LEAF_SIDES: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, ABOVE: tl.constexpr,
    NODE_ENTRIES: tl.constexpr, LEAF_ENTRIES: tl.constexpr, LEAF_COLUMNS: tl.constexpr, CN: tl.constexpr,
    CL: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr, ORDER: tl.constexpr,
):
    """y (slots, features), of which a program takes `share` features: over the nodes of a way, ABOVE (a power of two,
    or 0) of them above the block, and the neurons of its leaf, the sum of amplitude(factor) * row, plus the bias of
    the leaf. NODE_SIDES or LEAF_SIDES is 0 where there is nothing to add.

    The factors lie in registers while all features pass, but for leaves of more than CL columns.
    """
    slot, here, group = read_tile(tl.program_id(0), tiles, order, leaf, count, trees, FIRST, LEVELS, BT, ORDER)
    if group < 0:
        return
    way = tl.load(leaf + slot, mask=here, other=0).to(tl.int32) & ((1 << LEVELS) - 1)
    if NODE_SIDES > 0:
        if ABOVE > 0:
            above = tl.arange(0, ABOVE)
            above_row, _, _, is_above, _, _ = read_columns(
                above, group, _ANCESTORS, FIRST, LEVELS, DEPTH, WIDTH, NODE_SIDES
            )
            above_a = place_factors(
                node_factor, gate, node_factor, slot, here, way, group, above, DEPTH,
                _ANCESTORS, FIRST, LEVELS, DEPTH, WIDTH, NODE_SIDES, ACTIVATION, False, NODE_ENTRIES,
            ).to(node_weight.dtype.element_ty)
        nodes = tl.arange(0, CN)
        node_row, _, _, is_node, _, _ = read_columns(
            nodes, group, _NODES, FIRST, LEVELS, DEPTH, WIDTH, NODE_SIDES
        )
        node_a = place_factors(
            node_factor, gate, node_factor, slot, here, way, group, nodes, DEPTH,
            _NODES, FIRST, LEVELS, DEPTH, WIDTH, NODE_SIDES, ACTIVATION, False, NODE_ENTRIES,
        ).to(node_weight.dtype.element_ty)
    if LEAF_SIDES > 0 and LEAF_COLUMNS <= CL:
        neurons = tl.arange(0, CL)
        leaf_row, _, _, is_neuron, _, _ = read_columns(
            neurons, group, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES
        )
        leaf_a = place_factors(
            leaf_factor, gate, leaf_factor, slot, here, way, group, neurons, WIDTH,
            _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES, ACTIVATION, GATED, LEAF_ENTRIES,
        ).to(leaf_weight.dtype.element_ty)
    begin = tl.program_id(1) * share
    for start in range(begin, tl.minimum(begin + share, features), BO):
        o = start + tl.arange(0, BO)
        inside = o < features
        total = tl.zeros([BT, BO], tl.float32)
        if NODE_SIDES > 0:
            if ABOVE > 0:
                total = _add_rows(total, above_a, node_weight, above_row, is_above, o, inside, features)
            total = _add_rows(total, node_a, node_weight, node_row, is_node, o, inside, features)
        if LEAF_SIDES > 0:
            if LEAF_COLUMNS <= CL:
                total = _add_rows(total, leaf_a, leaf_weight, leaf_row, is_neuron, o, inside, features)
            else:
                for first in range(0, LEAF_COLUMNS, CL):
                    some = first + tl.arange(0, CL)
                    row, _, _, exists, _, _ = read_columns(
                        some, group, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES
                    )
                    a = place_factors(
                        leaf_factor, gate, leaf_factor, slot, here, way, group, some, WIDTH,
                        _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES, ACTIVATION, GATED, LEAF_ENTRIES,
                    )
                    total = _add_rows(
                        total, a.to(leaf_weight.dtype.element_ty), leaf_weight, row, exists, o, inside, features
                    )
        if BIAS:
            number = (group.to(tl.int64) << LEVELS) + way
            own = here[:, None] & inside[None, :]
            total += tl.load(leaf_bias + number[:, None] * features + o[None, :], mask=own, other=0.0).to(tl.float32)
        place = slot[:, None] * features + o[None, :]
        tl.store(y + place, total.to(y.dtype.element_ty), mask=here[:, None] & inside[None, :])


@triton.jit
def add_parts(parts, gate, y, tokens, trees, features, GATED: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr):
    """y (tokens, features): the sum of parts (tokens, trees, features), times gate (tokens, trees), in their order."""
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
