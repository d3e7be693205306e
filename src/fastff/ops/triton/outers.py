"""Sums over slots of factors times tokens: the gradients of rows."""

import torch
from torch import Tensor

from fastff.ops.triton.blocks import Blocks
from fastff.ops.triton.config import config
from fastff.ops.triton.kernels.columns import NODES
from fastff.ops.triton.kernels.outer import add_splits, outer_block
from fastff.ops.triton.launch import columns, divided, entries_of_tile, launch, power_of_two

SHARE = 512  # slots whose part of a weight's gradient one program sums, where a group is all tokens
MOST_SUMMED = 8192  # numbers that a program adds up at a time


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
    launch(
        outer_block,
        (blocks.number * split, divided(number, C), divided(features, BI)),
        config().outers,
        (
            factor,
            factor if logits is None else logits,
            x,
            groups.bounds,
            groups.order,
            blocks.way,
            target,
            target if target_bias is None else target_bias,
            groups.slots,
            blocks.number * number,
            blocks.trees,
            features,
            factor.shape[-1],
        ),
        {
            **blocks.constants,
            "KIND": kind,
            "WIDTH": width,
            "SIDES": sides,
            "KEPT": kept,
            "BIAS": bias is not None,
            "SPLIT": split,
            "ORDER": groups.kind,
            "BT": config().learned,
            "C": C,
            "BI": BI,
            "ENTRIES": entries_of_tile(blocks.levels if kind == NODES else width),
        },
    )
    if split > 1:
        rows, BI = blocks.number * number, MOST_SUMMED // power_of_two(split)
        add_splits[rows, divided(features, BI)](
            *(target, grad, grad if target_bias is None else target_bias, grad if bias is None else bias),
            *(number, grad.numel() // (blocks.trees * features), rows, features, split),
            **{"BIAS": bias is not None, "P": power_of_two(split), "BI": BI},
        )
