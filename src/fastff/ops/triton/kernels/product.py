"""Products of each slot's token with the rows on its way, out of the products with all rows of the block."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import read_columns, read_tile, tokens_times_rows


@triton.jit
def multiply_block(
    x, weight, bias, tiles, order, leaf, logits, out, count, trees, features, entries,
    KIND: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    SIDES: tl.constexpr, BIAS: tl.constexpr, BT: tl.constexpr, C: tl.constexpr, BI: tl.constexpr,
    ORDER: tl.constexpr,
):
    """out (slots, entries): row . x, plus bias if any. Of two rows of a neuron that of the side of its logit (slots,
    entries) counts.
    """
    below: tl.constexpr = DEPTH - FIRST
    slot, here, group = read_tile(tl.program_id(0), tiles, order, leaf, count, trees, FIRST, below, BT, ORDER)
    if group < 0:
        return
    column = tl.program_id(1) * C + tl.arange(0, C)
    row, entry, side, exists, position, shift = read_columns(column, group, KIND, FIRST, LEVELS, DEPTH, WIDTH, SIDES)
    product = tokens_times_rows(x, slot // trees, here, weight, row, exists, features, BT, C, BI)
    if BIAS:
        product += tl.load(bias + row, mask=exists, other=0.0).to(tl.float32)[None, :]
    way = (tl.load(leaf + slot, mask=here, other=0) >> (below - LEVELS)).to(tl.int32) & ((1 << LEVELS) - 1)
    chosen = here[:, None] & exists[None, :] & ((way[:, None] >> shift[None, :]) == position[None, :])
    place = slot[:, None] * entries + entry[None, :]
    if SIDES == 2:
        z = tl.load(logits + place, mask=chosen, other=0.0)
        chosen = chosen & ((z >= 0) == (side[None, :] == 1))
    tl.store(out + place, product, mask=chosen)
