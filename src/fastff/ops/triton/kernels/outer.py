"""Gradients of weights: of each row of a block the sum over its slots of factor * token, in the order of the slots."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import (
    AS_IT_IS,
    BY_TREE,
    SMALLEST,
    multiply,
    place_factors,
    read_features,
    read_way,
    rows_of,
)

_AS_IT_IS, _BY_TREE, _SMALLEST = tl.constexpr(AS_IT_IS), tl.constexpr(BY_TREE), tl.constexpr(SMALLEST)


@triton.jit
def outer_block(
    factor, sign, x, bounds, order, leaf, grad, grad_bias, count, rows, trees, features, entries,
    KIND: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    SIDES: tl.constexpr, KEPT: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr, BT: tl.constexpr,
    C: tl.constexpr, BI: tl.constexpr, ENTRIES: tl.constexpr, ORDER: tl.constexpr,
):
    """grad (SPLIT, rows, features) and grad_bias (SPLIT, rows), each part over its share of the group's slots; of a
    two-sided neuron the row of the side of its sign. KEPT: levels of the trees that `grad` holds.
    """
    group = tl.program_id(0) // SPLIT
    part = tl.program_id(0) % SPLIT
    if ORDER == _BY_TREE:
        first, end = 0, count
    else:
        first, end = tl.load(bounds + group).to(tl.int32), tl.load(bounds + group + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(end - first, SPLIT), BT) * BT
    first = first + part * share
    end = tl.minimum(end, first + share)
    column = tl.program_id(1) * C + tl.arange(0, C)
    row, exists = rows_of(column, group, KIND, FIRST, LEVELS, KEPT, WIDTH, SIDES)
    i = tl.program_id(2) * BI + tl.arange(0, BI)
    total = tl.zeros([C, BI], tl.float32)
    ones = tl.full([BT, _SMALLEST], 1.0, x.dtype.element_ty)
    sums = tl.zeros([C, _SMALLEST], tl.float32)  # all columns alike: the matrix units add up faster than threads do
    for start in range(first, end, BT):
        place = start + tl.arange(0, BT)
        here = place < end
        if ORDER == _BY_TREE:
            slot = tl.minimum(place, end - 1).to(tl.int64) * trees + group
        else:
            slot = tl.load(order + place, mask=here, other=0).to(tl.int64)
        way = read_way(leaf, slot, here, DEPTH - FIRST - LEVELS, LEVELS)
        a = place_factors(
            factor, factor, sign, slot, here, way, group, column, entries,
            KIND, FIRST, LEVELS, KEPT, WIDTH, SIDES, _AS_IT_IS, False, ENTRIES,
        )
        tokens = read_features(x, slot // trees, here, i, features)
        a = tl.trans(a).to(tokens.dtype)
        total = multiply(a, tokens, total)
        if BIAS:
            sums = multiply(a, ones, sums)
    row += part.to(tl.int64) * rows
    tl.store(
        grad + row[:, None] * features + i[None, :], total.to(grad.dtype.element_ty),
        mask=exists[:, None] & (i < features)[None, :],
    )
    if BIAS:
        if tl.program_id(2) == 0:
            own = tl.sum(sums, 1) / _SMALLEST
            tl.store(grad_bias + row, own.to(grad_bias.dtype.element_ty), mask=exists)


@triton.jit
def add_splits(
    parts, grad, parts_bias, grad_bias, of_tree, rows_of_tree, rows, features, split,
    BIAS: tl.constexpr, P: tl.constexpr, BI: tl.constexpr,
):
    """Sum parts (split, rows, features), `of_tree` rows of each tree, into the first rows of each tree of grad (trees,
    rows_of_tree, features), and parts_bias (split, rows) into grad_bias. P: split, rounded up to a power of two.
    """
    row = tl.program_id(0).to(tl.int64)
    target = row // of_tree * rows_of_tree + row % of_tree
    p = tl.arange(0, P)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    place = p.to(tl.int64) * rows + row
    there = (p < split)[:, None] & (i < features)[None, :]
    own = tl.load(parts + place[:, None] * features + i[None, :], mask=there, other=0.0)
    tl.store(grad + target * features + i, tl.sum(own, 0).to(grad.dtype.element_ty), mask=i < features)
    if BIAS:
        if tl.program_id(1) == 0:
            own_bias = tl.load(parts_bias + place, mask=p < split, other=0.0)
            tl.store(grad_bias + target, tl.sum(own_bias, 0).to(grad_bias.dtype.element_ty))
