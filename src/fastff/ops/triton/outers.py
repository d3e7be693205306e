"""Sums over slots of factors times tokens: the gradients of rows, all of a backward in one launch."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastff.ops.triton.blocks import Blocks
from fastff.ops.triton.config import SHORT, config
from fastff.ops.triton.kernels.columns import NODES
from fastff.ops.triton.kernels.outer import add_splits, outer_blocks
from fastff.ops.triton.launch import columns, divided, entries_of_tile, launch, power_of_two

SHARE = 128  # slots whose part of a weight's gradient one program sums, where a group is all tokens
MOST_SUMMED = 8192  # numbers that a program adds up at a time


class Outer(NamedTuple):
    """A gradient to be filled: the blocks' rows of a kind in grad (..., features) with sums of factor (tokens, trees,
    entries) * x (tokens, features), and those of bias (...) with sums of factors. A leaf has `width` neurons, a neuron
    as many rows as `sides`; of two that counts to whose side its logit leads.
    """

    blocks: Blocks
    factor: Tensor
    x: Tensor
    grad: Tensor
    kind: int
    width: int = 1
    sides: int = 1
    logits: Tensor | None = None
    bias: Tensor | None = None

    @property
    def number(self) -> int:
        """Rows of a block."""
        return self.blocks.columns(self.kind, self.width, self.sides)

    @property
    def split(self) -> int:
        """A tree's first block belongs to all tokens: parts of them are summed side by side, then added up."""
        return min(32, divided(self.x.shape[0], SHARE)) if self.blocks.first == 0 else 1


class Job(NamedTuple):
    """An `Outer` as `outer_blocks` sees it; its programs are those from `begin` to `end`."""

    begin: int
    end: int
    factor: Tensor
    sign: Tensor
    x: Tensor
    bounds: Tensor
    order: Tensor
    grad: Tensor
    bias: Tensor
    blocks: int
    slots: int
    rows: int
    features: int
    entries: int


class Parts(NamedTuple):
    """Parts of an `Outer` as `add_splits` sees them; its programs are those from `begin` to `end`."""

    begin: int
    end: int
    parts: Tensor
    grad: Tensor
    parts_bias: Tensor
    bias: Tensor
    of_tree: int
    rows_of_tree: int
    rows: int
    features: int


def fill(outers: list[Outer]) -> None:
    """Fill all these gradients of one backward, the first of which should be those whose groups differ in size: their
    longest ends last.
    """
    if not outers:
        return
    jobs: list[Job] = []
    constants = []
    split: list[Parts] = []
    for o in outers:
        made = _job(o, jobs[-1].end if jobs else 0)
        jobs.append(made)
        constants.append(_constants(o))
        if o.split > 1:
            split.append(_parts(o, made, split[-1].end if split else 0))
    blocks = outers[0].blocks
    launch(
        outer_blocks,
        (jobs[-1].end,),
        config().outers,
        (tuple(jobs), blocks.way, blocks.trees),
        {"DEPTH": blocks.depth, "JOBS": tuple(constants), "BT": config().learned},
    )
    if split:
        biased = tuple(o.bias is not None for o in outers if o.split > 1)
        count = next(o.split for o in outers if o.split > 1)
        P = power_of_two(count)
        launch(
            add_splits,
            (split[-1].end,),
            SHORT,
            (tuple(split),),
            {"JOBS": biased, "SPLIT": count, "P": P, "BI": MOST_SUMMED // P},
        )


def _job(o: Outer, begin: int) -> Job:
    groups, rows, features = o.blocks.groups, o.blocks.number * o.number, o.x.shape[1]
    grad, bias = o.grad, o.bias
    if o.split > 1:
        grad = grad.new_empty(o.split, rows, features, dtype=torch.float32)
        bias = None if bias is None else grad.new_empty(o.split, rows)
    tiles = divided(o.number, columns(o.number)) * divided(features, config().outers.features(o.x.dtype))
    return Job(
        begin,
        begin + o.blocks.number * o.split * tiles,
        o.factor,
        o.factor if o.logits is None else o.logits,
        o.x,
        groups.bounds,
        groups.order,
        grad,
        grad if bias is None else bias,
        o.blocks.number,
        groups.slots,
        rows,
        features,
        o.factor.shape[-1],
    )


def _constants(o: Outer) -> tuple[int, ...]:
    """In the order of the parameters of the kernel's `_outer`."""
    blocks, C = o.blocks, columns(o.number)
    return (
        *(o.kind, blocks.first, blocks.levels, o.width, o.sides),
        blocks.levels if o.split > 1 else blocks.depth,  # KEPT
        *(o.bias is not None, o.split, blocks.groups.kind),
        entries_of_tile(blocks.levels if o.kind == NODES else o.width),
        *(divided(o.number, C), C, config().outers.features(o.x.dtype)),
    )


def _parts(o: Outer, job: Job, begin: int) -> Parts:
    strips = divided(job.features, MOST_SUMMED // power_of_two(o.split))
    return Parts(
        begin,
        begin + job.rows * strips,
        job.grad,
        o.grad,
        job.bias,
        o.grad if o.bias is None else o.bias,
        o.number,
        o.grad.numel() // (o.blocks.number * job.features),
        job.rows,
        job.features,
    )
