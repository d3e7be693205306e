"""A few tokens: each slot goes its whole way, and puts out what it gathers, in one program.

The products are those of the tiles of many slots, of which one is there: a row's bits do not depend on the batch.
"""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.descend import descend
from fastff.ops.triton.kernels.product import hidden_neurons
from fastff.ops.triton.kernels.spread import spread
from fastff.ops.triton.kernels.turn import await_turn


@triton.jit
def pass_alone(
    x, node_weight, node_bias, node_out, w1, b1, w2, b2, mask, logits, leaf, hidden, y, trees, features, out_features,
    share,
    BLOCKS: tl.constexpr, REACHED: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr,
    WIDTH: tl.constexpr, NODE_SIDES: tl.constexpr, LEAF_SIDES: tl.constexpr, ACTIVATION: tl.constexpr,
    MASKED: tl.constexpr, BIAS: tl.constexpr, NODE_ENTRIES: tl.constexpr, LEAF_ENTRIES: tl.constexpr,
    LEAF_COLUMNS: tl.constexpr, CA: tl.constexpr, CN: tl.constexpr, CL: tl.constexpr, CB: tl.constexpr,
    CH: tl.constexpr, BT: tl.constexpr, C: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, EARLY: tl.constexpr,
):
    """What `descend_block`, `hidden_block` and `spread_block` set of the slot program_id(0), and its features from
    program_id(1) * share on; what several programs set of a slot is the same.

    BLOCKS: first level and levels of each block on a way. REACHED: whether the last computes the hidden neurons.
    """
    await_turn(EARLY)
    pid = tl.program_id(0)
    here = tl.arange(0, BT) == 0
    slot = pid.to(tl.int64) + tl.zeros([BT], tl.int64)
    tree = pid % trees
    node = tree * 0
    for b in tl.static_range(len(BLOCKS)):
        group = (tree << BLOCKS[b][0]) + node
        way = descend(
            x, node_weight, node_bias, w1, b1, logits, hidden, slot, here, group, trees, features,
            BLOCKS[b][0], BLOCKS[b][1], DEPTH, WIDTH if REACHED and b == len(BLOCKS) - 1 else 0, LEAF_ENTRIES,
            BT, C, CH, BI,
        )
        node = (node << BLOCKS[b][1]) + tl.sum(tl.where(here, way, 0), 0)
    tl.store(leaf + pid, node.to(tl.int64))
    group = (tree << FIRST) + (node >> LEVELS)
    way = (node & ((1 << LEVELS) - 1)) + tl.zeros([BT], tl.int32)
    if WIDTH > 0 and not REACHED:
        for begin in range(0, WIDTH << LEVELS, CH):
            hidden_neurons(
                x, w1, b1, hidden, slot, here, group, way, begin, trees, features,
                FIRST, LEVELS, DEPTH, WIDTH, LEAF_ENTRIES, BT, CH, BI,
            )
    tl.debug_barrier()  # logits and hidden neurons are read back
    first = tl.program_id(1) * share
    spread(
        logits, node_out, hidden, mask, w2, b2, y, slot, here, group, way, out_features,
        first, tl.minimum(first + share, out_features),
        FIRST, LEVELS, DEPTH, WIDTH, NODE_SIDES, LEAF_SIDES, ACTIVATION, MASKED, BIAS, NODE_ENTRIES, LEAF_ENTRIES,
        LEAF_COLUMNS, CA, CN, CL, CB, BT, BO,
    )
