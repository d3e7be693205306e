"""Which slots a tile holds: slots sorted by the node at which they stand, each group cut into tiles of its own."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastff.ops.triton.config import SHORT, config
from fastff.ops.triton.kernels.columns import BY_TREE, SORTED
from fastff.ops.triton.kernels.sort import count_keys, divide_groups, order_keys
from fastff.ops.triton.launch import divided, launch, power_of_two

ROUND = 64  # slots of which one program finds the ranks at a time, by comparing all pairs
MOST_CHUNKS, MOST_COUNTS = 1024, 1 << 20  # a chunk takes several rounds where there would be more of them, or of groups
FEW_COUNTS = 1 << 15  # of chunks and groups: each chunk adds them up for itself
COUNTS, MOST_GROUPS = 4096, 1024  # that it adds up at a time, and of how many groups
FEW_GROUPS = 128  # among which it looks up that of each slot, rather than in memory
CHUNKS, DIVIDED = 256, 16  # where there are more: chunks and groups of which one program finds the shares at a time


class Groups(NamedTuple):
    """Slots by group.

    Attributes:
        kind: BY_TREE or SORTED.
        tiles: (launches, 3) int32, the group, first and end of each tile in `order`; group -1 where there is none. Of
            SORTED.
        order: (R,) int32, the slots by group, within one in their own order.
        bounds: (groups + 1,) int64, where each group begins in `order`, and the end of the last.
        launches: of tiles.
        slots: what the kernels divide among tiles: the tokens of a tree if BY_TREE.
    """

    kind: int
    tiles: Tensor
    order: Tensor
    bounds: Tensor
    launches: int
    slots: int


def by_tree(tokens: int, trees: int, like: Tensor) -> Groups:
    """All tokens in each tree."""
    nothing = like.new_empty(0, dtype=torch.int32)
    return Groups(BY_TREE, nothing, nothing, nothing, trees * divided(tokens, config().tile), tokens)


def new_counts(place: Tensor, groups: int) -> Tensor | None:
    """For who learns the groups of slots tile by tile: (tiles, groups) int32, how many of each tile go to each group;
    None where the sort would count otherwise.
    """
    if config().tile != ROUND or _rounds(place.numel(), groups) > 1:
        return None
    return place.new_empty(divided(place.numel(), ROUND), groups, dtype=torch.int32)


def _rounds(slots: int, groups: int) -> int:
    """Of each chunk."""
    return max(divided(slots * groups, ROUND * MOST_COUNTS), divided(slots, ROUND * MOST_CHUNKS))


def sort_slots(
    place: Tensor,
    groups: int,
    *,
    trees: int = 1,
    level: int = 0,
    below: int = 0,
    walkers: int = 1,
    levels: Tensor | None = None,
    every: bool = True,
    counts: Tensor | None = None,
) -> Groups:
    """Slots, or the walkers of slots, by the node of `level` at which they are.

    Args:
        place: (tokens, trees), or (tokens, trees, walkers), int64: their way, of which `below` bits lie under the
            level. A value that leads out of the groups means no group.
        groups: their number.
        levels: at which the walkers set out, where there is one a slot; else walker w at level w.
        every: whether all walkers count, or those that set out above the level.
        counts: as `new_counts` made them, and filled, if they are known.
    """
    slots, rounds = place.numel(), _rounds(place.numel(), groups)
    chunks = divided(slots, ROUND * rounds)
    most = slots if every or levels is not None else slots // walkers * min(level, walkers)
    launches = min(most, divided(most, config().tile) + groups)  # a bound: the true number would have to be waited for
    shapes = ((chunks, groups), (groups,), (launches, 3), (slots,))
    begins, sizes, tiles, order = (place.new_empty(shape, dtype=torch.int32) for shape in shapes)
    bounds = place.new_empty(groups + 1)
    options = {"LEVEL": level, "BELOW": below, "WALKERS": walkers, "DRAWN": levels is not None, "ALL": every}
    levels = place if levels is None else levels
    BG = min(MOST_GROUPS, power_of_two(groups))
    if counts is None:
        counts = torch.empty_like(begins)
        arguments = (place, levels, counts, slots, trees, groups, rounds)
        launch(count_keys, (chunks,), SHORT, arguments, {**options, "ROUND": ROUND, "BG": BG})
    many = chunks * groups > FEW_COUNTS
    if many:
        grid = (divided(groups, DIVIDED),)
        launch(divide_groups, grid, SHORT, (counts, sizes, chunks, groups), {"BC": CHUNKS, "BG": DIVIDED})
    launch(
        order_keys,
        (chunks,),
        SHORT,
        (place, levels, counts, sizes, begins, bounds, tiles, order, slots, trees, groups, rounds, launches),
        {
            **options,
            "DIVIDED": many,
            "FEW": rounds == 1 and groups <= FEW_GROUPS,
            "ROUND": ROUND,
            "BC": COUNTS // BG,
            "BG": BG,
            "BT": config().tile,
        },
    )
    return Groups(SORTED, tiles, order, bounds, launches, slots)
