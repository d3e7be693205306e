"""The three products with blocks, on tensors: along each slot's way, summed over it, and its outer products."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastff.ops.activation import activation_code
from fastff.ops.triton.config import config
from fastff.ops.triton.group import Groups
from fastff.ops.triton.kernels.columns import ANCESTORS, LEAVES, NODES
from fastff.ops.triton.kernels.outer import outer_block
from fastff.ops.triton.kernels.product import multiply_block
from fastff.ops.triton.kernels.spread import add_parts, spread_block
from fastff.ops.triton.launch import SMALLEST, columns

SHARE = 1024  # slots whose part of a weight's gradient one program sums, where a group is all tokens


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


def multiply(
    blocks: Blocks,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    kind: int,
    *,
    width: int = 1,
    sides: int = 1,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """out (tokens, trees, entries): x (tokens, features) times the rows of a kind on each slot's way, plus bias.

    Of the two rows of a two-sided neuron the one of the side of its logit, of the shape of `out`.
    """
    groups, number = blocks.groups, blocks.columns(kind, width, sides)
    if not number:
        return
    C = columns(number)
    multiply_block[groups.launches, triton.cdiv(number, C)](
        *(x, weight, weight if bias is None else bias, groups.tiles, groups.order, blocks.way),
        *(out if logits is None else logits, out, groups.slots, blocks.trees, x.shape[1], out.shape[-1]),
        **{**blocks.constants, "KIND": kind, "WIDTH": width, "SIDES": sides, "BIAS": bias is not None},
        **{"BT": config().tile, "C": C, "BI": config().features, "ORDER": groups.kind, **config().options},
    )


class Rows(NamedTuple):
    """Rows to be summed: factor (tokens, trees, entries), weight, how many rows a neuron has."""

    factor: Tensor
    weight: Tensor
    sides: int


def spread(
    blocks: Blocks,
    y: Tensor,
    nodes: Rows | None,
    leaves: Rows | None,
    *,
    activation: int = activation_code("identity"),
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    gate: Tensor | None = None,
) -> None:
    """y (tokens, features): the sum over the trees of gate * (amplitudes of the rows on the way times these rows + the
    bias of the leaf). The mask is of the shape of the leaves' factor, the gate (tokens, trees).
    """
    groups, (T, O), K = blocks.groups, y.shape, blocks.trees
    width = 0 if leaves is None else leaves.factor.shape[-1]
    node_sides, leaf_sides = (0 if rows is None else rows.sides for rows in (nodes, leaves))
    in_nodes, in_leaves = blocks.columns(NODES, 1, node_sides), blocks.columns(LEAVES, width, leaf_sides)
    nodes, leaves = nodes or Rows(y, y, 0), leaves or Rows(y, y, 0)
    parts = y if K == 1 and gate is None else y.new_empty(T, K, O, dtype=torch.float32)
    spread_block[groups.launches, triton.cdiv(O, config().features)](
        *(nodes.factor, nodes.weight, leaves.factor, y if mask is None else mask, leaves.weight),
        *(y if bias is None else bias, groups.tiles, groups.order, blocks.way, parts, groups.slots, K, O),
        **{**blocks.constants, "WIDTH": width, "NODE_SIDES": node_sides, "LEAF_SIDES": leaf_sides},
        **{"ACTIVATION": activation, "GATED": mask is not None, "BIAS": bias is not None},
        **{"ABOVE": max(SMALLEST, triton.next_power_of_2(blocks.first)) if blocks.first else 0},
        **{"NODE_COLUMNS": in_nodes, "LEAF_COLUMNS": in_leaves, "C": columns(max(in_nodes, in_leaves))},
        **{"BT": config().tile, "BO": config().features, "ORDER": groups.kind, **config().options},
    )
    if parts is not y:
        grid = triton.cdiv(T, SMALLEST), triton.cdiv(O, config().features)
        gated = gate is not None
        add_parts[grid](
            parts, gate if gated else y, y, T, K, O, GATED=gated, BT=SMALLEST, BO=config().features, **config().options
        )


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
    split = min(32, triton.cdiv(x.shape[0], SHARE)) if blocks.first == 0 else 1
    target, target_bias, kept = grad, bias, blocks.depth
    if split > 1:
        kept = blocks.levels
        target = grad.new_empty(split, blocks.number * number, features, dtype=torch.float32)
        target_bias = None if bias is None else grad.new_empty(split, blocks.number * number, dtype=torch.float32)
    C = columns(number)
    outer_block[blocks.number * split, triton.cdiv(number, C), triton.cdiv(features, config().features)](
        *(factor, factor if logits is None else logits, x, groups.bounds, groups.order, blocks.way, target),
        *(target if target_bias is None else target_bias, groups.slots, blocks.number * number),
        *(blocks.trees, features, factor.shape[-1]),
        **{**blocks.constants, "KIND": kind, "WIDTH": width, "SIDES": sides, "KEPT": kept},
        **{
            "BIAS": bias is not None,
            "SPLIT": split,
            "ORDER": groups.kind,
            "BT": config().tile,
            "C": C,
            "BI": config().features,
            **config().options,
        },
    )
    if split > 1:
        _add_up(target, grad, kind, blocks.levels)
        if bias is not None and target_bias is not None:
            _add_up(target_bias, bias, kind, blocks.levels)


def _add_up(parts: Tensor, grad: Tensor, kind: int, levels: int) -> None:
    own = grad[:, : (1 << levels) - 1] if kind == NODES else grad
    own.copy_(parts.sum(0).view(own.shape))
