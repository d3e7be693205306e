"""The forward: down the blocks, then what nodes and leaves on the way put out."""

from typing import Any

import torch
from torch import Tensor

from fastff.ops.tree.checks import split_weights
from fastff.ops.tree.triton.inputs import Tree
from fastff.ops.triton.blocks import Rows
from fastff.ops.triton.config import config
from fastff.ops.triton.group import by_tree, new_counts
from fastff.ops.triton.kernels.alone import pass_alone
from fastff.ops.triton.kernels.descend import descend_block
from fastff.ops.triton.launch import columns, divided, entries_of_tile, launch, on_device, rows_of_tile
from fastff.ops.triton.products import hidden_neurons
from fastff.ops.triton.sums import add_trees, spread, sum_constants

FEW = 256  # slots
BUSY = 128  # programs that keep a GPU busy where each one's time is that of its way


def tree(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fastff::tree`."""
    *weights, mask, _levels, activation, _gradient, _sparse = inputs
    return _forward(Tree(x, *weights, mask=mask, activation=activation))


def tree_infer(x: Tensor, weights: list[Tensor], activation: int) -> tuple[Tensor, Tensor, Tensor]:
    """`fastff::tree_infer`."""
    return _forward(Tree(x, *split_weights(weights), mask=None, activation=activation))[:3]


def _forward(tree: Tree) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, T, K, D, plan = tree.x, tree.T, tree.K, tree.D, tree.plan
    y = x.new_empty(T, tree.out_features)
    logits = x.new_empty(T, K, D, dtype=torch.float32)
    leaf = x.new_empty(T, K, dtype=torch.int64) if D else x.new_zeros(T, K, dtype=torch.int64)
    hidden = x.new_empty(T, K, tree.W, dtype=torch.float32)
    if T == 0:
        return y, logits, leaf, hidden
    nodes = Rows(logits, tree.node_out, tree.node_sides) if tree.node_sides else None
    leaves = Rows(hidden, tree.w2, tree.leaf_sides) if tree.W else None
    with on_device(x):
        if T * K <= FEW:
            _pass_alone(tree, logits, leaf, hidden, nodes, leaves, y)
            return y, logits, leaf, hidden
        groups = {0: by_tree(T, K, leaf)}
        counts = None  # of who left the block before through which exit
        for first, levels in plan.blocks:
            here = groups[first] = groups.get(first) or tree.sort(first, leaf, counts=counts)
            counted = K == 1 and first == 0 and levels in (plan.first, *dict(plan.blocks))
            counts = new_counts(leaf, 1 << levels) if counted else None
            reached = plan.reaches and first == plan.first
            sizes = config().gains if reached else config().products
            launch(
                descend_block,
                (here.launches,),
                sizes,
                (
                    *(x, tree.node_weight, tree.node_bias, *((tree.w1, tree.b1) if reached else (x, x))),
                    *(here.tiles, here.order, logits, leaf, hidden, leaf if counts is None else counts),
                    *(here.slots, K, x.shape[1]),
                ),
                {
                    "FIRST": first,
                    "LEVELS": levels,
                    "DEPTH": D,
                    "WIDTH": tree.W if reached else 0,
                    "P": entries_of_tile(tree.W),
                    "C": columns(1 << levels),
                    "CL": rows_of_tile(tree.W << levels),
                    "BT": config().tile,
                    "BI": sizes.features(x.dtype),
                    "ORDER": here.kind,
                    "COUNTED": counts is not None,
                },
            )
        there = groups.get(plan.first) or tree.sort(plan.first, leaf, counts=counts)
        last = tree.blocks(plan.first, plan.last, there, leaf)
        if tree.W and not plan.reaches:
            hidden_neurons(last, x, tree.w1, tree.b1, hidden)
        spread(last, y, nodes, leaves, activation=tree.activation, bias=tree.b2, mask=tree.mask)
    return y, logits, leaf, hidden


def _pass_alone(
    tree: Tree, logits: Tensor, leaf: Tensor, hidden: Tensor, nodes: Rows | None, leaves: Rows | None, y: Tensor
) -> None:
    """The forward of a few slots, in one kernel: sorting them would take longer than reading rows for each alone."""
    x, T, K, W, plan = tree.x, tree.T, tree.K, tree.W, tree.plan
    last = tree.blocks(plan.first, plan.last, by_tree(T, K, leaf), leaf)
    masked = tree.mask is not None
    constants = sum_constants(last, nodes, leaves, tree.activation, masked=masked, bias=tree.b2 is not None)
    parts = y if K == 1 else y.new_empty(T, K, y.shape[1], dtype=torch.float32)
    BO, most = config().sums.features(x.dtype), max((levels for _, levels in plan.blocks), default=0)
    share = divided(divided(y.shape[1], BO), max(1, BUSY // (T * K))) * BO
    weights = (tree.node_weight, tree.node_bias, tree.node_out, tree.w1, tree.b1, tree.w2, tree.b2, tree.mask)
    launch(
        pass_alone,
        (T * K, divided(y.shape[1], share)),
        config().alone,
        (x, *(x if t is None else t for t in weights), logits, leaf, hidden, parts, K, x.shape[1], y.shape[1], share),
        {
            **constants,
            "BLOCKS": tuple(plan.blocks),
            "REACHED": plan.reaches,
            "CH": rows_of_tile(W << plan.last) if plan.reaches else columns(W << plan.last),
            "C": columns(1 << most),
            "BI": config().alone.features(x.dtype),
            "BO": BO,
        },
    )
    if parts is not y:
        add_trees(parts, y, None)
