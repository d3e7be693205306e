"""How a tree is cut into blocks for the GPU kernels."""

from dataclasses import dataclass
from functools import cached_property

from fastff.ops.triton.config import config

NEURONS = 64  # of the leaves under a group that a tile multiplies, though each token needs those of one leaf


@dataclass(frozen=True)
class Plan:
    """The blocks of a tree of `depth` levels of nodes and leaves of `width` neurons (0: none)."""

    depth: int
    width: int

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """First level and number of levels of each block on a way, of sizes as equal as can be."""
        number = -(-self.depth // config().levels)
        sizes = [(self.depth + i) // number for i in reversed(range(number))]
        return [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]

    @cached_property
    def last(self) -> int:
        """Levels under the node that tokens of a group share when outputs are computed."""
        levels = self.blocks[-1][1] if self.blocks else 0
        while self.width << levels > NEURONS and levels:
            levels -= 1
        return levels

    @property
    def first(self) -> int:
        """The level of that node."""
        return self.depth - self.last
