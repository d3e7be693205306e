"""Leaves that share a base: the sum of both, of all four tensors in one launch."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.turn import await_turn


@triton.jit
def _add(own, base, out, size, total, leaves, block, BLOCK: tl.constexpr):
    """out (trees, leaves, size), of `total` numbers: own + base (trees, 1, size), of one block of BLOCK numbers."""
    i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    shared = i // size // leaves * size + i % size
    a = tl.load(own + i, mask=i < total, other=0.0).to(tl.float32)
    a += tl.load(base + shared, mask=i < total, other=0.0).to(tl.float32)
    tl.store(out + i, a.to(out.dtype.element_ty), mask=i < total)


@triton.jit
def add_base(
    w1, b1, w2, b2, base_w1, base_b1, base_w2, base_b2, out_w1, out_b1, out_w2, out_b2,
    size_w1, size_b1, size_w2, size_b2, total_w1, total_b1, total_w2, total_b2, leaves,
    BLOCK: tl.constexpr, EARLY: tl.constexpr,
):
    """The blocks of the four tensors lie one after the other in the grid."""
    await_turn(EARLY)
    block = tl.program_id(0)
    end_w1 = tl.cdiv(total_w1, BLOCK)
    end_b1 = end_w1 + tl.cdiv(total_b1, BLOCK)
    end_w2 = end_b1 + tl.cdiv(total_w2, BLOCK)
    if block < end_w1:
        _add(w1, base_w1, out_w1, size_w1, total_w1, leaves, block, BLOCK)
    elif block < end_b1:
        _add(b1, base_b1, out_b1, size_b1, total_b1, leaves, block - end_w1, BLOCK)
    elif block < end_w2:
        _add(w2, base_w2, out_w2, size_w2, total_w2, leaves, block - end_b1, BLOCK)
    else:
        _add(b2, base_b2, out_b2, size_b2, total_b2, leaves, block - end_w2, BLOCK)
