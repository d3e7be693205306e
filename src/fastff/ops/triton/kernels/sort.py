"""A stable counting sort of slots by group, and the division of each group into tiles.

Three kernels: how many slots of each chunk go to each group; where each chunk's share of a group begins, which the
third finds for itself where chunks are few; each slot to its place, which among equals of its chunk is its rank. All in
integers, so the result is the same from run to run.
"""

import triton
import triton.language as tl

from fastff.ops.triton.kernels.turn import await_turn


@triton.jit
def _read_keys(
    place, levels, number, slots, trees, groups,
    LEVEL: tl.constexpr, BELOW: tl.constexpr, WALKERS: tl.constexpr, DRAWN: tl.constexpr, ALL: tl.constexpr,
):
    """The group of each entry of `place`, and which have one: (entries,) of a slot, or (slots, WALKERS) of walkers, of
    which, unless ALL, those count that set out above LEVEL.
    """
    slot = number // WALKERS
    here = number < slots
    key = (slot % trees << LEVEL) + (tl.load(place + number, mask=here, other=0) >> BELOW)
    here = here & (key >= 0) & (key < groups)
    if not ALL:
        if DRAWN:
            here = here & (tl.load(levels + slot, mask=here, other=0) < LEVEL)
        else:
            here = here & (number % WALKERS < LEVEL)
    return tl.where(here, key, 0).to(tl.int32), here


@triton.jit(do_not_specialize=["slots"])
def count_keys(
    place, levels, counts, slots, trees, groups, rounds,
    LEVEL: tl.constexpr, BELOW: tl.constexpr, WALKERS: tl.constexpr, DRAWN: tl.constexpr, ALL: tl.constexpr,
    ROUND: tl.constexpr, BG: tl.constexpr, EARLY: tl.constexpr,
):
    """counts (chunks, groups) int32: the entries of each chunk, of `rounds` times ROUND, in each group."""
    await_turn(EARLY)
    chunk = tl.program_id(0)
    own = counts + chunk.to(tl.int64) * groups
    for start in range(0, groups, BG):
        g = start + tl.arange(0, BG)
        tl.store(own + g, tl.zeros([BG], tl.int32), mask=g < groups)
    tl.debug_barrier()
    for r in range(rounds):
        number = (chunk * rounds + r) * ROUND + tl.arange(0, ROUND)
        key, here = _read_keys(place, levels, number, slots, trees, groups, LEVEL, BELOW, WALKERS, DRAWN, ALL)
        tl.atomic_add(own + key, 1, mask=here)


@triton.jit(do_not_specialize=["chunks"])
def divide_groups(counts, sizes, chunks, groups, BC: tl.constexpr, BG: tl.constexpr, EARLY: tl.constexpr):
    """Turn counts (chunks, groups) into where a chunk's share of a group begins, relative to the group; set sizes
    (groups,) int32.
    """
    await_turn(EARLY)
    g = tl.program_id(0) * BG + tl.arange(0, BG)
    total = tl.zeros([BG], tl.int32)
    for first in range(0, chunks, BC):
        c = first + tl.arange(0, BC)
        at = c[:, None].to(tl.int64) * groups + g[None, :]
        there = (c < chunks)[:, None] & (g < groups)[None, :]
        count = tl.load(counts + at, mask=there, other=0)
        tl.store(counts + at, total[None, :] + tl.cumsum(count, 0) - count, mask=there)
        total += tl.sum(count, 0)
    tl.store(sizes + g, total, mask=g < groups)


@triton.jit(do_not_specialize=["slots", "most"])
def order_keys(
    place, levels, counts, sizes, begins, bounds, tiles, order, slots, trees, groups, rounds, most,
    LEVEL: tl.constexpr, BELOW: tl.constexpr, WALKERS: tl.constexpr, DRAWN: tl.constexpr, ALL: tl.constexpr,
    DIVIDED: tl.constexpr, FEW: tl.constexpr, ROUND: tl.constexpr, BC: tl.constexpr, BG: tl.constexpr, BT: tl.constexpr,
    EARLY: tl.constexpr,
):
    """order (entries,) int32: the entries by group, within one in their own order; bounds (groups + 1,) int64 and tiles
    (most, 3) int32 of the groups, of which each program writes some. `begins` (chunks, groups) is scratch.

    DIVIDED: whether counts and sizes are as `divide_groups` leaves them, else as `count_keys` does. FEW: whether there
    is one round, and BG holds all groups: nothing has to wait for memory then.
    """
    await_turn(EARLY)
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    lane = tl.arange(0, ROUND)
    if FEW:
        number = chunk * ROUND + lane
        key, here = _read_keys(place, levels, number, slots, trees, groups, LEVEL, BELOW, WALKERS, DRAWN, ALL)
        of_key = tl.zeros([ROUND], tl.int32)
    own_begins = begins + chunk.to(tl.int64) * groups
    entries = 0
    used = 0
    for start in range(0, groups, BG):
        g = start + tl.arange(0, BG)
        if DIVIDED:
            size = tl.load(sizes + g, mask=g < groups, other=0)
            before = tl.load(counts + chunk.to(tl.int64) * groups + g, mask=g < groups, other=0)
        else:
            size = tl.zeros([BG], tl.int32)
            before = tl.zeros([BG], tl.int32)
            for first in range(0, chunks, BC):
                c = first + tl.arange(0, BC)
                there = (c < chunks)[:, None] & (g < groups)[None, :]
                count = tl.load(counts + c[:, None] * groups + g[None, :], mask=there, other=0)
                size += tl.sum(count, 0)
                before += tl.sum(tl.where((c < chunk)[:, None], count, 0), 0)
        begin = entries + tl.cumsum(size, 0) - size
        if FEW:
            of_key += tl.sum(tl.where(key[:, None] == g[None, :], (begin + before)[None, :], 0), 1)
        else:
            tl.store(own_begins + g, begin + before, mask=g < groups)
        if chunk == 0:
            tl.store(bounds + g, begin.to(tl.int64), mask=g < groups)
        of_group = (size + BT - 1) // BT
        tile = used + tl.cumsum(of_group, 0) - of_group
        mine = tl.where(g % chunks == chunk, of_group, 0)
        for i in range(tl.max(mine, 0)):
            at = tiles + 3 * (tile + i)
            tl.store(at, g, mask=i < mine)
            tl.store(at + 1, begin + i * BT, mask=i < mine)
            tl.store(at + 2, begin + size, mask=i < mine)
        entries += tl.sum(size, 0)
        used += tl.sum(of_group, 0)
    if chunk == 0:
        tl.store(bounds + groups, entries)
    for start in range(used + chunk * BG, most, chunks * BG):
        unused = start + tl.arange(0, BG)
        at = tiles + 3 * unused
        tl.store(at, unused * 0 - 1, mask=unused < most)
        tl.store(at + 1, unused * 0, mask=unused < most)
        tl.store(at + 2, unused * 0, mask=unused < most)
    if FEW:
        tl.store(order + of_key + _ranks(key, here, lane), number, mask=here)
    else:
        for r in range(rounds):
            tl.debug_barrier()  # what this program has written of `begins`
            number = (chunk * rounds + r) * ROUND + lane
            key, here = _read_keys(place, levels, number, slots, trees, groups, LEVEL, BELOW, WALKERS, DRAWN, ALL)
            of_key = tl.load(own_begins + key, mask=here, other=0)
            tl.store(order + of_key + _ranks(key, here, lane), number, mask=here)
            if r + 1 < rounds:
                tl.debug_barrier()
                tl.atomic_add(own_begins + key, 1, mask=here)


@triton.jit
def _ranks(key, here, lane):
    """How many entries before each one have its key."""
    equal = (key[:, None] == key[None, :]) & here[None, :] & (lane[None, :] < lane[:, None])
    return tl.sum(equal.to(tl.int32), 1)
