"""Sums of the rows on each slot's way, each row times its own factor: the output, and the gradient of the input."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import ANCESTORS, LEAVES, NODES, amplitude, multiply, read_columns, read_tile

_NODES, _LEAVES, _ANCESTORS = tl.constexpr(NODES), tl.constexpr(LEAVES), tl.constexpr(ANCESTORS)


@triton.jit
def _add_rows(
    total, factor, gate, weight, slot, here, way, group, column, o, inside, features, entries,
    KIND: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    SIDES: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
):
    """total (BT, BO) + amplitudes of a slot's columns times their rows."""
    row, entry, side, exists, position, shift = read_columns(column, group, KIND, FIRST, LEVELS, DEPTH, WIDTH, SIDES)
    chosen = here[:, None] & exists[None, :] & ((way[:, None] >> shift[None, :]) == position[None, :])
    place = slot[:, None] * entries + entry[None, :]
    a = amplitude(tl.load(factor + place, mask=chosen, other=0.0), side[None, :], SIDES, ACTIVATION)
    if GATED:
        a *= tl.load(gate + place, mask=chosen, other=0.0).to(tl.float32)
    a = tl.where(chosen, a, 0.0)
    rows = tl.load(weight + row[:, None] * features + o[None, :], mask=exists[:, None] & inside[None, :], other=0.0)
    return multiply(a.to(rows.dtype), rows, total)


@triton.jit
def spread_block(
    node_factor, node_weight, leaf_factor, gate, leaf_weight, leaf_bias, tiles, order, leaf, y, count, trees,
    features,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NODE_SIDES: tl.constexpr,
    LEAF_SIDES: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, ABOVE: tl.constexpr,
    NODE_COLUMNS: tl.constexpr, LEAF_COLUMNS: tl.constexpr, BT: tl.constexpr, C: tl.constexpr, BO: tl.constexpr,
    ORDER: tl.constexpr,
):
    """y (slots, features): over the nodes of a way, ABOVE (a power of two, or 0) of them above the block, and the
    neurons of its leaf, the sum of amplitude(factor) * row, plus the bias of the leaf. NODE_SIDES or LEAF_SIDES is 0
    where there is nothing to add.
    """
    slot, here, group = read_tile(tl.program_id(0), tiles, order, leaf, count, trees, FIRST, LEVELS, BT, ORDER)
    if group < 0:
        return
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    inside = o < features
    way = tl.load(leaf + slot, mask=here, other=0).to(tl.int32) & ((1 << LEVELS) - 1)
    total = tl.zeros([BT, BO], tl.float32)
    if NODE_SIDES > 0:
        if ABOVE > 0:
            total = _add_rows(
                total, node_factor, gate, node_weight, slot, here, way, group, tl.arange(0, ABOVE), o, inside,
                features, DEPTH, _ANCESTORS, FIRST, LEVELS, DEPTH, WIDTH, NODE_SIDES, ACTIVATION, False,
            )
        for start in range(0, NODE_COLUMNS, C):
            total = _add_rows(
                total, node_factor, gate, node_weight, slot, here, way, group, start + tl.arange(0, C), o, inside,
                features, DEPTH, _NODES, FIRST, LEVELS, DEPTH, WIDTH, NODE_SIDES, ACTIVATION, False,
            )
    if LEAF_SIDES > 0:
        for start in range(0, LEAF_COLUMNS, C):
            total = _add_rows(
                total, leaf_factor, gate, leaf_weight, slot, here, way, group, start + tl.arange(0, C), o, inside,
                features, WIDTH, _LEAVES, FIRST, LEVELS, DEPTH, WIDTH, LEAF_SIDES, ACTIVATION, GATED,
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
