"""Products with blocks: tokens or gradients times the rows on each slot's way."""

from torch import Tensor

from fastff.ops.triton.blocks import Blocks, Rows
from fastff.ops.triton.config import config
from fastff.ops.triton.kernels.columns import LEAVES
from fastff.ops.triton.kernels.product import gain_block, hidden_block
from fastff.ops.triton.launch import columns, divided, entries_of_tile, launch


def hidden_neurons(blocks: Blocks, x: Tensor, w1: Tensor, b1: Tensor, hidden: Tensor) -> None:
    """hidden (tokens, trees, width): x (tokens, features) times the rows of each slot's leaf, plus their biases."""
    groups, width = blocks.groups, hidden.shape[-1]
    number = blocks.columns(LEAVES, width, 1)
    C = columns(number)
    sizes = config().products
    launch(
        hidden_block,
        (groups.launches, divided(number, C)),
        sizes,
        (x, w1, b1, groups.tiles, groups.order, blocks.way, hidden, groups.slots, blocks.trees, x.shape[1]),
        {
            **blocks.constants,
            "WIDTH": width,
            "P": entries_of_tile(width),
            "BT": config().tile,
            "C": C,
            "BI": sizes.features(x.dtype),
            "ORDER": groups.kind,
        },
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
    constants = blocks.row_constants(nodes, leaves)
    neurons = blocks.columns(LEAVES, constants["WIDTH"], constants["LEAF_SIDES"])
    CL = columns(neurons)
    nodes, leaves = nodes or Rows(found[0], grad_y, 0), leaves or Rows(found[1], grad_y, 0)
    sizes = config().gains
    launch(
        gain_block,
        (groups.launches, max(1, divided(neurons, CL))),
        sizes,
        (
            grad_y,
            nodes.weight,
            leaves.weight,
            grad_y if bias is None else bias,
            groups.tiles,
            groups.order,
            blocks.way,
            nodes.factor,
            leaves.factor,
            *found,
            groups.slots,
            blocks.trees,
            O,
        ),
        {**constants, "CL": CL, "BI": sizes.features(grad_y.dtype), "ORDER": groups.kind},
    )
