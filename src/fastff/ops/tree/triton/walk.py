"""The sides not taken."""

import torch
from torch import Tensor

from fastff.ops.tree.triton.inputs import Call
from fastff.ops.triton.config import config
from fastff.ops.triton.group import Groups
from fastff.ops.triton.kernels.walk import walk_block, walk_leaves
from fastff.ops.triton.launch import columns, launch

SAMPLED, EXACT = 2, 3  # of GRADIENTS


def walk(call: Call, groups: dict[int, Groups]) -> Tensor:
    """What the sides not taken would have gained: (T, K, D), or (T, K, 1) of the level drawn."""
    tree, drawn = call.tree, call.gradient == SAMPLED
    T, K, D, I, O = tree.T, tree.K, tree.D, tree.x.shape[1], call.grad_y.shape[1]
    walkers = 1 if drawn else D
    worth = call.logits.new_empty(T, K, walkers)
    end = torch.empty_like(worth, dtype=torch.int64)
    levels = call.leaf if call.levels is None else call.levels
    node_out = tree.node_weight if tree.node_out is None else tree.node_out
    sizes = config().gains

    def pass_block(first: int, count: int, here: Groups, place: Tensor, *, begin: bool) -> None:
        launch(
            walk_block,
            (here.launches,),
            sizes,
            (
                *(tree.x, tree.node_weight, tree.node_bias, call.grad_y, node_out, here.tiles, here.order),
                *(place, call.leaf, levels, worth, end, here.slots, K, I, O),
            ),
            {
                "FIRST": first,
                "LEVELS": count,
                "DEPTH": D,
                "SIDES": tree.node_sides,
                "BEGIN": begin,
                "ACTIVATION": tree.activation,
                "WALKERS": walkers,
                "DRAWN": drawn,
                "ORDER": here.kind,
                "BT": config().tile,
                "C": columns(1 << count),
                "BI": sizes.features(tree.x.dtype),
            },
        )

    for first, count in tree.plan.blocks:
        if first:
            come = tree.sort(first, end, walkers=walkers, levels=call.levels if drawn else None, every=False)
            pass_block(first, count, come, end, begin=False)
        pass_block(first, count, groups[first], call.leaf, begin=True)
    if tree.W:
        first, count = tree.plan.first, tree.plan.last
        here, neurons = tree.sort(first, end, walkers=walkers), tree.W << count
        launch(
            walk_leaves,
            (here.launches,),
            sizes,
            (
                *(tree.x, tree.w1, tree.b1, call.grad_y, tree.w2, tree.b2, here.tiles, here.order),
                *(end, worth, here.slots, K, I, O),
            ),
            {
                "FIRST": first,
                "LEVELS": count,
                "DEPTH": D,
                "WIDTH": tree.W,
                "SIDES": tree.leaf_sides,
                "ACTIVATION": tree.activation,
                "WALKERS": walkers,
                "COLUMNS": neurons,
                "ORDER": here.kind,
                "BT": config().tile,
                "C": columns(neurons),
                "CB": columns(1 << count),
                "BI": sizes.features(tree.x.dtype),
            },
        )
    return worth
