"""Sums over each slot's way of rows times factors; sums over trees, and of leaves and their base."""

import torch
from torch import Tensor

from fastff.ops.triton.blocks import Blocks, Rows
from fastff.ops.triton.config import SHORT, config
from fastff.ops.triton.kernels.base import add_base
from fastff.ops.triton.kernels.columns import AS_IT_IS, LEAVES, SMALLEST
from fastff.ops.triton.kernels.spread import add_parts, spread_block
from fastff.ops.triton.launch import divided, launch, rows_of_tile

PROGRAMS = 1024  # that keep a GPU busy: where tiles are fewer, each one's output is divided
MOST_LEAF_COLUMNS = 128  # whose factors a program keeps
ADDED = 2048  # numbers to which one adds those of a base


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
    launch(
        spread_block,
        (groups.launches, divided(O, share)),
        config().sums,
        (
            nodes.factor,
            nodes.weight,
            leaves.factor,
            y if mask is None else mask,
            leaves.weight,
            y if bias is None else bias,
            parts,
            O,
            share,
            groups.tiles,
            groups.order,
            blocks.way,
            groups.slots,
            K,
        ),
        {**constants, "BO": BO, "ORDER": groups.kind},
    )
    if parts is not y:
        add_trees(parts, y, gate)


def sum_constants(
    blocks: Blocks, nodes: Rows | None, leaves: Rows | None, activation: int, *, masked: bool, bias: bool
) -> dict[str, int]:
    """Of the kernels that sum rows."""
    constants = blocks.row_constants(nodes, leaves)
    neurons = blocks.columns(LEAVES, constants["WIDTH"], constants["LEAF_SIDES"])
    return constants | {
        "ACTIVATION": activation,
        "MASKED": masked,
        "BIAS": bias,
        "LEAF_COLUMNS": neurons,
        "CL": rows_of_tile(neurons) if neurons <= MOST_LEAF_COLUMNS else config().columns,
    }


def add_trees(parts: Tensor, y: Tensor, gate: Tensor | None) -> None:
    """y (tokens, features): the sum of parts (tokens, trees, features), times gate (tokens, trees) if any."""
    (T, O), K, BO = y.shape, parts.shape[1], config().sums.features(y.dtype)
    arguments = (parts, y if gate is None else gate, y, T, K, O)
    constants = {"GATED": gate is not None, "BT": SMALLEST, "BO": BO}
    launch(add_parts, (divided(T, SMALLEST), divided(O, BO)), SHORT, arguments, constants)


def with_base(leaves: list[Tensor], base: list[Tensor]) -> list[Tensor]:
    """Leaves (trees, number, ...), to each of which the base (trees, 1, ...) is added."""
    made, number = [torch.empty_like(t) for t in leaves], leaves[0].shape[1]
    sizes, totals = [t.numel() // t.shape[0] for t in base], [t.numel() for t in leaves]
    grid = (sum(divided(total, ADDED) for total in totals),)
    launch(add_base, grid, SHORT, (*leaves, *base, *made, *sizes, *totals, number), {"BLOCK": ADDED})
    return made
