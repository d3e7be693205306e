"""The products with blocks, on tensors: along each slot's way, summed over it, and its outer products."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastff.ops.triton.config import config
from fastff.ops.triton.group import Groups
from fastff.ops.triton.kernels.base import add_base
from fastff.ops.triton.kernels.columns import ANCESTORS, AS_IT_IS, LEAVES, NODES, SMALLEST
from fastff.ops.triton.kernels.outer import add_splits, outer_block
from fastff.ops.triton.kernels.product import gain_block, hidden_block
from fastff.ops.triton.kernels.spread import add_parts, spread_block
from fastff.ops.triton.launch import columns, divided, entries_of_tile, power_of_two, rows_of_tile

SHARE = 512  # slots whose part of a weight's gradient one program sums, where a group is all tokens
PROGRAMS = 1024  # that keep a GPU busy: where tiles are fewer, each one's output is divided
MOST_LEAF_COLUMNS = 128  # whose factors a program keeps
MOST_SUMMED = 8192  # numbers that a program adds up at a time
ADDED = 2048  # numbers to which one adds those of a base


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


class Rows(NamedTuple):
    """Rows to be summed: factor (tokens, trees, entries), weight, how many rows a neuron has."""

    factor: Tensor
    weight: Tensor
    sides: int


def hidden_neurons(blocks: Blocks, x: Tensor, w1: Tensor, b1: Tensor, hidden: Tensor) -> None:
    """hidden (tokens, trees, width): x (tokens, features) times the rows of each slot's leaf, plus their biases."""
    groups, width = blocks.groups, hidden.shape[-1]
    number = blocks.columns(LEAVES, width, 1)
    C = columns(number)
    hidden_block[groups.launches, divided(number, C)](
        *(x, w1, b1, groups.tiles, groups.order, blocks.way, hidden, groups.slots, blocks.trees, x.shape[1]),
        **{**blocks.constants, "WIDTH": width, "P": entries_of_tile(width), "BT": config().tile, "C": C},
        **{"BI": config().products.features(x.dtype), "ORDER": groups.kind, **config().products.options},
    )


def gains(
    blocks: Blocks,
    grad_y: Tensor,
    nodes: Rows | None,
    leaves: Rows | None,
    bias: Tensor | None,
    found: tuple[Tensor, Tensor, Tensor],
) -> None:
    """What grad_y (tokens, features) gains by the output rows of the nodes and the leaf on each slot's way and by the
    leaf's bias, into `found`: (tokens, trees, levels), (tokens, trees, width) and (tokens, trees, 1).

    The factors of the rows are logits, whose sign says which of two rows of a neuron counts.
    """
    groups, O = blocks.groups, grad_y.shape[1]
    width = 0 if leaves is None else leaves.factor.shape[-1]
    node_sides, leaf_sides = (0 if rows is None else rows.sides for rows in (nodes, leaves))
    neurons = blocks.columns(LEAVES, width, leaf_sides)
    CL = columns(neurons)
    nodes, leaves = nodes or Rows(found[0], grad_y, 0), leaves or Rows(found[1], grad_y, 0)
    gain_block[groups.launches, max(1, divided(neurons, CL))](
        *(grad_y, nodes.weight, leaves.weight, grad_y if bias is None else bias, groups.tiles, groups.order),
        *(blocks.way, nodes.factor, leaves.factor, *found, groups.slots, blocks.trees, O),
        **{**blocks.constants, "WIDTH": width, "NODE_SIDES": node_sides, "LEAF_SIDES": leaf_sides},
        **{"NODE_ENTRIES": entries_of_tile(blocks.levels), "LEAF_ENTRIES": entries_of_tile(width)},
        **{"CA": rows_of_tile(blocks.first), "CN": rows_of_tile(blocks.columns(NODES, 1, node_sides)), "CL": CL},
        **{"CB": rows_of_tile(1 << blocks.levels), "BT": config().tile, "ORDER": groups.kind},
        **{"BI": config().gains.features(grad_y.dtype), **config().gains.options},
    )


def spread(
    blocks: Blocks,
    y: Tensor,
    nodes: Rows | None,
    leaves: Rows | None,
    *,
    activation: int = AS_IT_IS,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    gate: Tensor | None = None,
) -> None:
    """y (tokens, features): the sum over the trees of gate * (amplitudes of the rows on the way times these rows + the
    bias of the leaf). The mask is of the shape of the leaves' factor, the gate (tokens, trees).
    """
    groups, (T, O), K = blocks.groups, y.shape, blocks.trees
    constants = sum_constants(blocks, nodes, leaves, activation, masked=mask is not None, bias=bias is not None)
    nodes, leaves = nodes or Rows(y, y, 0), leaves or Rows(y, y, 0)
    parts = y if K == 1 and gate is None else y.new_empty(T, K, O, dtype=torch.float32)
    BO = config().sums.features(y.dtype)
    share = divided(divided(O, BO), max(1, PROGRAMS // groups.launches)) * BO
    spread_block[groups.launches, divided(O, share)](
        *(nodes.factor, nodes.weight, leaves.factor, y if mask is None else mask, leaves.weight),
        *(y if bias is None else bias, parts, O, share, groups.tiles, groups.order, blocks.way, groups.slots, K),
        **{**blocks.constants, **constants, "BO": BO, "ORDER": groups.kind, **config().sums.options},
    )
    if parts is not y:
        add_trees(parts, y, gate)


def sum_constants(
    blocks: Blocks, nodes: Rows | None, leaves: Rows | None, activation: int, *, masked: bool, bias: bool
) -> dict[str, int]:
    """Of the kernels that sum rows."""
    width = 0 if leaves is None else leaves.factor.shape[-1]
    node_sides, leaf_sides = (0 if rows is None else rows.sides for rows in (nodes, leaves))
    neurons = blocks.columns(LEAVES, width, leaf_sides)
    return {
        "WIDTH": width,
        "NODE_SIDES": node_sides,
        "LEAF_SIDES": leaf_sides,
        "ACTIVATION": activation,
        "MASKED": masked,
        "BIAS": bias,
        "NODE_ENTRIES": entries_of_tile(blocks.levels),
        "LEAF_ENTRIES": entries_of_tile(width),
        "LEAF_COLUMNS": neurons,
        "CA": rows_of_tile(blocks.first),
        "CN": rows_of_tile(blocks.columns(NODES, 1, node_sides)),
        "CL": rows_of_tile(neurons) if neurons <= MOST_LEAF_COLUMNS else config().columns,
        "CB": rows_of_tile(1 << blocks.levels),
        "BT": config().tile,
    }


def add_trees(parts: Tensor, y: Tensor, gate: Tensor | None) -> None:
    """y (tokens, features): the sum of parts (tokens, trees, features), times gate (tokens, trees) if any."""
    (T, O), K, BO = y.shape, parts.shape[1], config().sums.features(y.dtype)
    gated = gate is not None
    grid = divided(T, SMALLEST), divided(O, BO)
    add_parts[grid](parts, gate if gated else y, y, T, K, O, GATED=gated, BT=SMALLEST, BO=BO)


def outer(
    blocks: Blocks,
    factor: Tensor,
    x: Tensor,
    grad: Tensor,
    kind: int,
    *,
    width: int = 1,
    sides: int = 1,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Fill the blocks' rows of a kind in grad (..., features) with sums of factor (tokens, trees, entries) * x, and of
    bias (...) with sums of factors.
    """
    groups, features, number = blocks.groups, x.shape[1], blocks.columns(kind, width, sides)
    # A tree's first block belongs to all tokens: parts of them are summed side by side, then added up.
    split = min(32, divided(x.shape[0], SHARE)) if blocks.first == 0 else 1
    target, target_bias, kept = grad, bias, blocks.depth
    if split > 1:
        kept = blocks.levels
        target = grad.new_empty(split, blocks.number * number, features, dtype=torch.float32)
        target_bias = None if bias is None else grad.new_empty(split, blocks.number * number, dtype=torch.float32)
    C = columns(number)
    BI = config().outers.features(x.dtype)
    outer_block[blocks.number * split, divided(number, C), divided(features, BI)](
        *(factor, factor if logits is None else logits, x, groups.bounds, groups.order, blocks.way, target),
        *(target if target_bias is None else target_bias, groups.slots, blocks.number * number),
        *(blocks.trees, features, factor.shape[-1]),
        **{**blocks.constants, "KIND": kind, "WIDTH": width, "SIDES": sides, "KEPT": kept},
        **{
            "BIAS": bias is not None,
            "SPLIT": split,
            "ORDER": groups.kind,
            "BT": config().learned,
            "C": C,
            "BI": BI,
            "ENTRIES": entries_of_tile(blocks.levels if kind == NODES else width),
            **config().outers.options,
        },
    )
    if split > 1:
        rows, BI = blocks.number * number, MOST_SUMMED // power_of_two(split)
        add_splits[rows, divided(features, BI)](
            *(target, grad, grad if target_bias is None else target_bias, grad if bias is None else bias),
            *(number, grad.numel() // (blocks.trees * features), rows, features, split),
            **{"BIAS": bias is not None, "P": power_of_two(split), "BI": BI},
        )


def with_base(leaves: list[Tensor], base: list[Tensor]) -> list[Tensor]:
    """Leaves (trees, number, ...), to each of which the base (trees, 1, ...) is added."""
    made, number = [torch.empty_like(t) for t in leaves], leaves[0].shape[1]
    sizes, totals = [t.numel() // t.shape[0] for t in base], [t.numel() for t in leaves]
    add_base[sum(divided(total, ADDED) for total in totals),](
        *leaves, *base, *made, *sizes, *totals, number, BLOCK=ADDED
    )
    return made
