"""A stable counting sort of slots by group, and the division of each group into tiles.

Three kernels: how many slots of each chunk go to each group; where each chunk's share of a group begins; each slot to
its place, which among equals of its chunk is its rank. All in integers, so the result is the same from run to run.
"""

import triton
import triton.language as tl


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


@triton.jit
def count_keys(
    place, levels, counts, slots, trees, groups,
    LEVEL: tl.constexpr, BELOW: tl.constexpr, WALKERS: tl.constexpr, DRAWN: tl.constexpr, ALL: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Add to counts (chunks, groups) int32 the entries of each chunk in each group."""
    number = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    key, here = _read_keys(place, levels, number, slots, trees, groups, LEVEL, BELOW, WALKERS, DRAWN, ALL)
    tl.atomic_add(counts + tl.program_id(0).to(tl.int64) * groups + key, 1, mask=here)


@triton.jit
def divide_groups(
    counts, bounds, tiles, chunks, groups, most,
    BT: tl.constexpr, BC: tl.constexpr, BG: tl.constexpr,
):
    """Turn counts (chunks, groups) into where a chunk's share of a group begins, relative to the group; set bounds
    (groups + 1,) and tiles (most, 3). One program.
    """
    c = tl.arange(0, BC)
    place = 0  # in the order of slots
    tile = 0
    for start in range(0, groups, BG):
        g = start + tl.arange(0, BG)
        sizes = tl.zeros([BG], tl.int32)
        for first in range(0, chunks, BC):
            at = (first + c)[:, None].to(tl.int64) * groups + g[None, :]
            there = (first + c < chunks)[:, None] & (g < groups)[None, :]
            count = tl.load(counts + at, mask=there, other=0)
            tl.store(counts + at, sizes[None, :] + tl.cumsum(count, 0) - count, mask=there)
            sizes += tl.sum(count, 0)
        begin = place + tl.cumsum(sizes, 0) - sizes
        tl.store(bounds + g, begin.to(tl.int64), mask=g < groups)
        own = (sizes + BT - 1) // BT
        first_tile = tile + tl.cumsum(own, 0) - own
        for i in range(tl.max(own, 0)):
            at = tiles + 3 * (first_tile + i)
            tl.store(at, g, mask=i < own)
            tl.store(at + 1, begin + i * BT, mask=i < own)
            tl.store(at + 2, begin + sizes, mask=i < own)
        place += tl.sum(sizes, 0)
        tile += tl.sum(own, 0)
    tl.store(bounds + groups, place)
    for start in range(tile, most, BG):
        number = start + tl.arange(0, BG)
        at = tiles + 3 * number
        tl.store(at, number * 0 - 1, mask=number < most)
        tl.store(at + 1, number * 0, mask=number < most)
        tl.store(at + 2, number * 0, mask=number < most)


@triton.jit
def order_keys(
    place, levels, begins, bounds, order, slots, trees, groups,
    LEVEL: tl.constexpr, BELOW: tl.constexpr, WALKERS: tl.constexpr, DRAWN: tl.constexpr, ALL: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """order (entries,) int32: the entries by group, within one in their own order."""
    i = tl.arange(0, CHUNK)
    number = tl.program_id(0) * CHUNK + i
    key, here = _read_keys(place, levels, number, slots, trees, groups, LEVEL, BELOW, WALKERS, DRAWN, ALL)
    equal = (key[:, None] == key[None, :]) & here[None, :] & (i[None, :] < i[:, None])
    rank = tl.sum(equal.to(tl.int32), 1)
    begin = tl.load(begins + tl.program_id(0).to(tl.int64) * groups + key, mask=here, other=0)
    at = tl.load(bounds + key, mask=here, other=0) + begin + rank
    tl.store(order + at, number, mask=here)
