"""Gradients of weights: of each row of a block the sum over its slots of factor * token, in the order of the slots."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import BY_TREE, multiply, read_columns

_BY_TREE = tl.constexpr(BY_TREE)


@triton.jit
def outer_block(
    factor, logits, x, bounds, order, leaf, grad, grad_bias, count, rows, trees, features, entries,
    KIND: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    SIDES: tl.constexpr, KEPT: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr, BT: tl.constexpr,
    C: tl.constexpr, BI: tl.constexpr, ORDER: tl.constexpr,
):
    """grad (SPLIT, rows, features) and grad_bias (SPLIT, rows), each part over its share of the group's slots; of a
    two-sided neuron the row of the side of its logit. KEPT: levels of the trees that `grad` holds.
    """
    group = tl.program_id(0) // SPLIT
    part = tl.program_id(0) % SPLIT
    below: tl.constexpr = DEPTH - FIRST - LEVELS
    if ORDER == _BY_TREE:
        first, end = 0, count
    else:
        first, end = tl.load(bounds + group).to(tl.int32), tl.load(bounds + group + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(end - first, SPLIT), BT) * BT
    first = first + part * share
    end = tl.minimum(end, first + share)
    column = tl.program_id(1) * C + tl.arange(0, C)
    row, entry, side, exists, position, shift = read_columns(column, group, KIND, FIRST, LEVELS, KEPT, WIDTH, SIDES)
    i = tl.program_id(2) * BI + tl.arange(0, BI)
    inside = i < features
    total = tl.zeros([C, BI], tl.float32)
    sums = tl.zeros([C], tl.float32)
    for start in range(first, end, BT):
        place = start + tl.arange(0, BT)
        here = place < end
        if ORDER == _BY_TREE:
            slot = place.to(tl.int64) * trees + group
        else:
            slot = tl.load(order + place, mask=here, other=0).to(tl.int64)
        way = (tl.load(leaf + slot, mask=here, other=0) >> below).to(tl.int32) & ((1 << LEVELS) - 1)
        chosen = here[None, :] & exists[:, None] & ((way[None, :] >> shift[:, None]) == position[:, None])
        at = slot[None, :] * entries + entry[:, None]
        if SIDES == 2:
            z = tl.load(logits + at, mask=chosen, other=0.0)
            chosen = chosen & ((z >= 0) == (side[:, None] == 1))
        a = tl.load(factor + at, mask=chosen, other=0.0)
        tokens = tl.load(
            x + (slot // trees)[:, None] * features + i[None, :], mask=here[:, None] & inside[None, :], other=0.0
        )
        total = multiply(a.to(tokens.dtype), tokens, total)
        sums += tl.sum(a, 1)
    row += part.to(tl.int64) * rows
    tl.store(
        grad + row[:, None] * features + i[None, :], total.to(grad.dtype.element_ty),
        mask=exists[:, None] & inside[None, :],
    )
    if BIAS:
        if tl.program_id(2) == 0:
            tl.store(grad_bias + row, sums.to(grad_bias.dtype.element_ty), mask=exists)
