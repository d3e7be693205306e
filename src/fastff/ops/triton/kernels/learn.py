"""The gradients of what a slot computed, from the products of its rows with the gradient of the output."""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.columns import respond
from fastff.ops.triton.kernels.turn import await_turn


@triton.jit(do_not_specialize=["slots"])
def learn_path(
    logits, node_gain, hidden, leaf_gain, mask, bias_gain, other, levels, grad_logits, grad_node, node_amplitude,
    grad_hidden, leaf_amplitude, slots,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, NODE_SIDES: tl.constexpr, LEAF_SIDES: tl.constexpr,
    ACTIVATION: tl.constexpr, GRADIENT: tl.constexpr, MASKED: tl.constexpr, GIVEN: tl.constexpr, BT: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr, EARLY: tl.constexpr,
):
    """Gradients and amplitudes of the nodes (slots, DEPTH) and hidden neurons (slots, WIDTH) on the way.

    Gains are grad_y . row. `other` holds what the sides not taken are worth: (slots, DEPTH) if GRADIENT is exact (3),
    (slots,) of the drawn level if sampled (2).
    """
    await_turn(EARLY)
    slot = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    here = slot < slots
    worth = tl.zeros([BT], tl.float32)  # grad_y . output of the leaf
    if LEAF_SIDES > 0:
        worth += tl.load(bias_gain + slot, mask=here, other=0.0)
        for start in range(0, WIDTH, C):
            w = start + tl.arange(0, C)
            at = slot[:, None] * WIDTH + w[None, :]
            there = here[:, None] & (w < WIDTH)[None, :]
            h = tl.load(hidden + at, mask=there, other=0.0)
            gain = tl.load(leaf_gain + at, mask=there, other=0.0)
            a, d = respond(h, LEAF_SIDES, ACTIVATION)
            if MASKED:
                kept = tl.load(mask + at, mask=there, other=0.0).to(tl.float32)
                a, d = a * kept, d * kept
            tl.store(leaf_amplitude + at, a, mask=there)
            tl.store(grad_hidden + at, d * gain, mask=there)
            worth += tl.sum(tl.where(there, a * gain, 0.0), 1)
    if DEPTH > 0:
        level = tl.arange(0, P)
        there = here[:, None] & (level < DEPTH)[None, :]
        at = slot[:, None] * DEPTH + level[None, :]
        z = tl.load(logits + at, mask=there, other=0.0)
        dz = tl.zeros([BT, P], tl.float32)
        if GIVEN:
            dz += tl.load(grad_logits + at, mask=there, other=0.0)
        if NODE_SIDES > 0:
            gain = tl.load(node_gain + at, mask=there, other=0.0)
            a, d = respond(z, NODE_SIDES, ACTIVATION)
            tl.store(node_amplitude + at, a, mask=there)
            dz += d * gain
        if GRADIENT > 0:
            below = worth[:, None] + tl.zeros([BT, P], tl.float32)  # what lies below a level on the way taken
            if NODE_SIDES > 0:
                inner = here[:, None] & (level + 1 < DEPTH)[None, :]
                next_z = tl.load(logits + at + 1, mask=inner, other=0.0)
                next_gain = tl.load(node_gain + at + 1, mask=inner, other=0.0)
                next_a, _ = respond(next_z, NODE_SIDES, ACTIVATION)
                below += tl.cumsum(tl.where(inner, next_a * next_gain, 0.0), 1, reverse=True)
            if GRADIENT == 3:
                aside = tl.load(other + at, mask=there, other=0.0)
                below -= tl.where(tl.abs(aside) < float("inf"), aside, 0.0)
            elif GRADIENT == 2:
                drawn = tl.load(levels + slot, mask=here, other=0)[:, None] == level[None, :]
                aside = tl.load(other + slot, mask=here, other=0.0)
                aside = tl.where(tl.abs(aside) < float("inf"), aside, 0.0)
                below = tl.where(drawn, DEPTH * (below - aside[:, None]), 0.0)
            p = tl.sigmoid(z)
            steepness = p * (1.0 - p)
            dz += steepness * tl.where(z >= 0, below, -below)
        tl.store(grad_node + at, dz, mask=there)
