"""Blocks of subtrees, the tokens that pass them, and their rows, as the kernels see them."""

from typing import NamedTuple

from torch import Tensor

from fastff.ops.triton.config import config
from fastff.ops.triton.group import Groups
from fastff.ops.triton.kernels.columns import ANCESTORS, LEAVES, NODES
from fastff.ops.triton.launch import entries_of_tile, rows_of_tile


class Rows(NamedTuple):
    """Rows to be summed: factor (tokens, trees, entries), weight, how many rows a neuron has."""

    factor: Tensor
    weight: Tensor
    sides: int


class Blocks(NamedTuple):
    """Blocks of subtrees and who passes them.

    Attributes:
        groups: the slots of each block.
        number: of blocks.
        trees: slots a token has.
        depth: levels of a tree; `first` of them are above the blocks, `levels` in them.
        way: (tokens, trees) int64, the leaf of each slot.
    """

    groups: Groups
    number: int
    trees: int
    depth: int
    first: int
    levels: int
    way: Tensor

    def columns(self, kind: int, width: int, sides: int) -> int:
        """Rows of a kind that a block has."""
        if kind == ANCESTORS:
            return self.first
        return (width << self.levels if kind == LEAVES else (1 << self.levels) - 1) * sides

    @property
    def constants(self) -> dict[str, int]:
        return {"FIRST": self.first, "LEVELS": self.levels, "DEPTH": self.depth}

    def row_constants(self, nodes: Rows | None, leaves: Rows | None) -> dict[str, int]:
        """Of kernels to which the rows of nodes, ancestors and leaves come together."""
        width = 0 if leaves is None else leaves.factor.shape[-1]
        node_sides, leaf_sides = (0 if rows is None else rows.sides for rows in (nodes, leaves))
        return self.constants | {
            "WIDTH": width,
            "NODE_SIDES": node_sides,
            "LEAF_SIDES": leaf_sides,
            "NODE_ENTRIES": entries_of_tile(self.levels),
            "LEAF_ENTRIES": entries_of_tile(width),
            "CA": rows_of_tile(self.first),
            "CN": rows_of_tile(self.columns(NODES, 1, node_sides)),
            "CB": rows_of_tile(1 << self.levels),
            "BT": config().tile,
        }
