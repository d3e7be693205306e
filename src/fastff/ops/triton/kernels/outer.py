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


@triton.jit(do_not_specialize=["ends", "tokens", "split"])
def outer_blocks(
    jobs, ends, tokens, split, leaf, trees,
    DEPTH: tl.constexpr, JOBS: tl.constexpr, BT: tl.constexpr, EARLY: tl.constexpr,
):
    """All sums of a backward, the programs of one after those of another, up to its end in `ends`: what each is say
    `fastff.ops.triton.outers.Job` and JOBS, the further parameters of `_outer`.
    """
    await_turn(EARLY)
    pid = tl.program_id(0)
    begin = 0
    for j in tl.static_range(len(JOBS)):
        if (pid >= begin) & (pid < ends[j]):
            _outer(pid - begin, jobs[j], tokens, split, leaf, trees, DEPTH, BT, *JOBS[j])
        begin = ends[j]


@triton.jit
def _outer(
    pid, job, tokens, split, leaf, trees, DEPTH: tl.constexpr, BT: tl.constexpr,
    KIND: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, WIDTH: tl.constexpr, SIDES: tl.constexpr,
    KEPT: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr, ORDER: tl.constexpr, ENTRIES: tl.constexpr,
    TILES: tl.constexpr, C: tl.constexpr, BI: tl.constexpr,
):
    """grad (rows, features) and bias (rows), or if SPLIT so many parts of both, each over its share of the group's
    slots; of a two-sided neuron the row of the side of its sign. KEPT: levels of the trees that `grad` holds. TILES: of
    columns.
    """
    if not SPLIT:
        split = 1
    parts = job.blocks * split
    group = pid % parts // split
    part = pid % split
    if ORDER == _BY_TREE:
        first, end = 0, tokens
    else:
        first, end = tl.load(job.bounds + group).to(tl.int32), tl.load(job.bounds + group + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(end - first, split), BT) * BT
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
        of_token = read_features(job.x, slot // trees, here, i, job.features)
        a = tl.trans(a).to(of_token.dtype)
        total = multiply(a, of_token, total)
        if BIAS:
            sums = multiply(a, ones, sums)
    row += tl.cast(part, tl.int64) * job.rows
    tl.store(
        job.grad + row[:, None] * job.features + i[None, :], total.to(job.grad.dtype.element_ty),
        mask=exists[:, None] & (i < job.features)[None, :],
    )
    if BIAS:
        if strip == 0:
            own = tl.sum(sums, 1) / _SMALLEST
            tl.store(job.bias + row, own.to(job.bias.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["ends", "split"])
def add_splits(jobs, ends, split, JOBS: tl.constexpr, P: tl.constexpr, BI: tl.constexpr, EARLY: tl.constexpr):
    """The parts of all sums that were split, the programs of one after those of another, up to its end in `ends`; what
    each is says `fastff.ops.triton.outers.Parts`, and JOBS whether it has biases. P: at least `split`.
    """
    await_turn(EARLY)
    pid = tl.program_id(0)
    begin = 0
    for j in tl.static_range(len(JOBS)):
        if (pid >= begin) & (pid < ends[j]):
            _add_parts(pid - begin, jobs[j], split, JOBS[j], P, BI)
        begin = ends[j]


@triton.jit
def _add_parts(pid, job, split, BIAS: tl.constexpr, P: tl.constexpr, BI: tl.constexpr):
    """Sum parts (split, rows, features), `of_tree` rows of each tree, into the first rows of each tree of grad (trees,
    rows_of_tree, features), and parts_bias (split, rows) into the bias.
    """
    row = (pid % job.rows).to(tl.int64)
    strip = pid // job.rows
    target = row // job.of_tree * job.rows_of_tree + row % job.of_tree
    p = tl.arange(0, P)
    i = strip * BI + tl.arange(0, BI)
    place = p.to(tl.int64) * job.rows + row
    there = (p < split)[:, None] & (i < job.features)[None, :]
    own = tl.load(job.parts + place[:, None] * job.features + i[None, :], mask=there, other=0.0)
    tl.store(job.grad + target * job.features + i, tl.sum(own, 0).to(job.grad.dtype.element_ty), mask=i < job.features)
    if BIAS:
        if strip == 0:
            own_bias = tl.load(job.parts_bias + place, mask=p < split, other=0.0)
            tl.store(job.bias + target, tl.sum(own_bias, 0).to(job.bias.dtype.element_ty))
