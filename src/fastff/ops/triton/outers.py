"""Sums over slots of factors times tokens: the gradients of rows, all of a backward in one launch."""

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from fastff.ops.triton.blocks import Blocks
from fastff.ops.triton.config import SHORT, config
from fastff.ops.triton.kernels.columns import NODES
from fastff.ops.triton.kernels.outer import add_splits, outer_blocks
from fastff.ops.triton.launch import columns, divided, entries_of_tile, launch

SHARE, MOST_PARTS = 128, 32  # slots whose part of a weight's gradient one program sums, where a group is all tokens
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
    def tiles(self) -> int:
        """Of a block's rows."""
        return divided(self.number, columns(self.number))

    @property
    def split(self) -> int:
        """A tree's first block belongs to all tokens: parts of them are summed side by side, then added up."""
        return min(MOST_PARTS, divided(self.x.shape[0], SHARE)) if self.blocks.first == 0 else 1


class Job(NamedTuple):
    """An `Outer` as `outer_blocks` sees it."""

    factor: Tensor
    sign: Tensor
    x: Tensor
    bounds: Tensor
    order: Tensor
    grad: Tensor
    bias: Tensor
    blocks: int
    rows: int
    features: int
    entries: int


class Parts(NamedTuple):
    """Parts of an `Outer` as `add_splits` sees them."""

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
    jobs = tuple(map(_job, outers))
    blocks, split = outers[0].blocks, max(o.split for o in outers)
    ends = tuple(accumulate(map(_programs, outers)))
    launch(
        outer_blocks,
        (ends[-1],),
        config().outers,
        (jobs, ends, outers[0].x.shape[0], split, blocks.way, blocks.trees),
        {"DEPTH": blocks.depth, "JOBS": tuple(map(_constants, outers)), "BT": config().learned},
    )
    if split == 1:
        return
    split_up = [(o, job) for o, job in zip(outers, jobs, strict=True) if o.split > 1]
    BI = MOST_SUMMED // MOST_PARTS
    ends = tuple(accumulate(job.rows * divided(job.features, BI) for _, job in split_up))
    launch(
        add_splits,
        (ends[-1],),
        SHORT,
        (tuple(_parts(o, job) for o, job in split_up), ends, split),
        {"JOBS": tuple(o.bias is not None for o, _ in split_up), "P": MOST_PARTS, "BI": BI},
    )


def _programs(o: Outer) -> int:
    strips = divided(o.x.shape[1], config().outers.features(o.x.dtype))
    return o.blocks.number * o.split * o.tiles * strips


def _job(o: Outer) -> Job:
    groups, rows, features = o.blocks.groups, o.blocks.number * o.number, o.x.shape[1]
    grad, bias = o.grad, o.bias
    if o.split > 1:
        grad = grad.new_empty(o.split, rows, features, dtype=torch.float32)
        bias = None if bias is None else grad.new_empty(o.split, rows)
    return Job(
        o.factor,
        o.factor if o.logits is None else o.logits,
        o.x,
        groups.bounds,
        groups.order,
        grad,
        grad if bias is None else bias,
        o.blocks.number,
        rows,
        features,
        o.factor.shape[-1],
    )


def _constants(o: Outer) -> tuple[int, ...]:
    """In the order of the parameters of the kernel's `_outer`."""
    blocks, split = o.blocks, o.split > 1
    return (
        *(o.kind, blocks.first, blocks.levels, o.width, o.sides),
        blocks.levels if split else blocks.depth,  # KEPT
        *(o.bias is not None, split, blocks.groups.kind),
        entries_of_tile(blocks.levels if o.kind == NODES else o.width),
        *(o.tiles, columns(o.number), config().outers.features(o.x.dtype)),
    )


def _parts(o: Outer, job: Job) -> Parts:
    return Parts(
        job.grad,
        o.grad,
        job.bias,
        o.grad if o.bias is None else o.bias,
        o.number,
        o.grad.numel() // (o.blocks.number * job.features),
        job.rows,
        job.features,
    )
