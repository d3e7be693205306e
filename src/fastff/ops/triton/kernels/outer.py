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
from fastff.ops.triton.kernels.turn import await_turn

_AS_IT_IS, _BY_TREE, _SMALLEST = tl.constexpr(AS_IT_IS), tl.constexpr(BY_TREE), tl.constexpr(SMALLEST)


@triton.jit
def outer_blocks(jobs, leaf, trees, DEPTH: tl.constexpr, JOBS: tl.constexpr, BT: tl.constexpr, EARLY: tl.constexpr):
    """All sums of a backward, the programs of one after those of another: `fastff.ops.triton.outers.Job` and its
    `constants` say what each is.
    """
    await_turn(EARLY)
    pid = tl.program_id(0)
    for j in tl.static_range(len(JOBS)):
        if (pid >= jobs[j].begin) & (pid < jobs[j].end):
            _outer(pid - jobs[j].begin, jobs[j], leaf, trees, DEPTH, BT, *JOBS[j])


@triton.jit
def _outer(
    pid, job, leaf, trees, DEPTH: tl.constexpr, BT: tl.constexpr,
    KIND: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, WIDTH: tl.constexpr, SIDES: tl.constexpr,
    KEPT: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr, ORDER: tl.constexpr, ENTRIES: tl.constexpr,
    TILES: tl.constexpr, C: tl.constexpr, BI: tl.constexpr,
):
    """grad (SPLIT, rows, features) and grad_bias (SPLIT, rows), each part over its share of the group's slots; of a
    two-sided neuron the row of the side of its sign. KEPT: levels of the trees that `grad` holds. TILES: of columns.
    """
    parts = job.blocks * SPLIT
    group = pid % parts // SPLIT
    part = pid % SPLIT
    if ORDER == _BY_TREE:
        first, end = 0, job.slots
    else:
        first, end = tl.load(job.bounds + group).to(tl.int32), tl.load(job.bounds + group + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(end - first, SPLIT), BT) * BT
    first = first + part * share
    end = tl.minimum(end, first + share)
    tile = pid // parts % TILES
    column = tile * C + tl.arange(0, C)
    row, exists = rows_of(column, group, KIND, FIRST, LEVELS, KEPT, WIDTH, SIDES)
    strip = pid // parts // TILES
    i = strip * BI + tl.arange(0, BI)
    total = tl.zeros([C, BI], tl.float32)
    ones = tl.full([BT, _SMALLEST], 1.0, job.x.dtype.element_ty)
    sums = tl.zeros([C, _SMALLEST], tl.float32)  # all columns alike: the matrix units add up faster than threads do
    for start in range(first, end, BT):
        place = start + tl.arange(0, BT)
        here = place < end
        if ORDER == _BY_TREE:
            slot = tl.minimum(place, end - 1).to(tl.int64) * trees + group
        else:
            slot = tl.load(job.order + place, mask=here, other=0).to(tl.int64)
        way = read_way(leaf, slot, here, DEPTH - FIRST - LEVELS, LEVELS)
        a = place_factors(
            job.factor, job.factor, job.sign, slot, here, way, group, column, job.entries,
            KIND, FIRST, LEVELS, KEPT, WIDTH, SIDES, _AS_IT_IS, False, ENTRIES,
        )
        tokens = read_features(job.x, slot // trees, here, i, job.features)
        a = tl.trans(a).to(tokens.dtype)
        total = multiply(a, tokens, total)
        if BIAS:
            sums = multiply(a, ones, sums)
    row += part.to(tl.int64) * job.rows
    tl.store(
        job.grad + row[:, None] * job.features + i[None, :], total.to(job.grad.dtype.element_ty),
        mask=exists[:, None] & (i < job.features)[None, :],
    )
    if BIAS:
        if strip == 0:
            own = tl.sum(sums, 1) / _SMALLEST
            tl.store(job.bias + row, own.to(job.bias.dtype.element_ty), mask=exists)


@triton.jit
def add_splits(jobs, JOBS: tl.constexpr, SPLIT: tl.constexpr, P: tl.constexpr, BI: tl.constexpr, EARLY: tl.constexpr):
    """The parts of all sums that were split, the programs of one after those of another; what each is says
    `fastff.ops.triton.outers.Parts`, and JOBS whether it has biases. P: SPLIT, rounded up to a power of two.
    """
    await_turn(EARLY)
    pid = tl.program_id(0)
    for j in tl.static_range(len(JOBS)):
        if (pid >= jobs[j].begin) & (pid < jobs[j].end):
            _add_parts(pid - jobs[j].begin, jobs[j], JOBS[j], SPLIT, P, BI)


@triton.jit
def _add_parts(pid, job, BIAS: tl.constexpr, SPLIT: tl.constexpr, P: tl.constexpr, BI: tl.constexpr):
    """Sum parts (SPLIT, rows, features), `of_tree` rows of each tree, into the first rows of each tree of grad (trees,
    rows_of_tree, features), and parts_bias (SPLIT, rows) into the bias.
    """
    row = (pid % job.rows).to(tl.int64)
    strip = pid // job.rows
    target = row // job.of_tree * job.rows_of_tree + row % job.of_tree
    p = tl.arange(0, P)
    i = strip * BI + tl.arange(0, BI)
    place = p.to(tl.int64) * job.rows + row
    there = (p < SPLIT)[:, None] & (i < job.features)[None, :]
    own = tl.load(job.parts + place[:, None] * job.features + i[None, :], mask=there, other=0.0)
    tl.store(job.grad + target * job.features + i, tl.sum(own, 0).to(job.grad.dtype.element_ty), mask=i < job.features)
    if BIAS:
        if strip == 0:
            own_bias = tl.load(job.parts_bias + place, mask=p < SPLIT, other=0.0)
            tl.store(job.bias + target, tl.sum(own_bias, 0).to(job.bias.dtype.element_ty))
