"""How a tree is cut into blocks for the GPU kernels."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

NEURONS = 128  # of the leaves under a group that a tile multiplies, though each token needs those of one leaf


@dataclass(frozen=True)
class Plan:
    """The blocks, of at most `levels`, of a tree of `depth` levels of nodes and leaves of `width` neurons (0: none)."""

    depth: int
    width: int
    levels: int

    @cached_property
    def last(self) -> int:
        """Levels under the node that tokens of a group share when outputs are computed."""
        levels = _split(self.depth, self._number)[-1] if self.depth else 0
        while self.width << levels > NEURONS and levels:
            levels -= 1
        return levels

    @property
    def first(self) -> int:
        """The level of that node."""
        return self.depth - self.last

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """First level and number of levels of each block on a way: of sizes as equal as can be, or such that the last
        begins at `first`, where that takes no more of them and so saves a sort.
        """
        sizes = _split(self.depth, self._number)
        if 0 < self.last < sizes[-1] and self.first <= self.levels * (self._number - 1):
            sizes = [*_split(self.first, self._number - 1), self.last]
        return [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]

    @cached_property
    def reaches(self) -> bool:
        """Whether the last block computes the hidden neurons of the leaves under it along with its logits."""
        return self.width > 0 and self.blocks[-1:] == [(self.first, self.last)]

    @property
    def _number(self) -> int:
        return -(-self.depth // self.levels)


@lru_cache(maxsize=256)
def plan_of(depth: int, width: int, levels: int) -> Plan:
    """The plan of trees of this shape, which is made once."""
    return Plan(depth, width, levels)


def _split(levels: int, number: int) -> list[int]:
    """So many sizes, as equal as can be, the largest first."""
    return [(levels + i) // number for i in reversed(range(number))]
