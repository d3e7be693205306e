"""What a call is given."""

from typing import Any, NamedTuple

from torch import Tensor

from fastff.ops.checks import tree_depth
from fastff.ops.tree.checks import check_tree
from fastff.ops.tree.plan import plan_of
from fastff.ops.triton.blocks import Blocks
from fastff.ops.triton.config import config
from fastff.ops.triton.group import Groups, sort_slots
from fastff.ops.triton.launch import on_device
from fastff.ops.triton.sums import with_base


class Tree:
    """Tokens and a tree, checked and contiguous, the base added to its leaves."""

    def __init__(self, x: Tensor, *weights: Any, mask: Tensor | None, activation: int) -> None:
        check_tree(x, weights, mask, activation)
        self.x, self.mask, self.activation = x.contiguous(), None if mask is None else mask.contiguous(), activation
        whole: list[Any] = [None if t is None else t.contiguous() for t in weights]
        self.node_weight, self.node_bias, self.node_out, *leaves = whole[:7]
        if leaves[0] is not None and leaves[3] is None:  # the kernels know no leaf without output biases
            K, L = leaves[0].shape[:2]
            leaves[3] = x.new_zeros(K, L, leaves[2].shape[-1])
            whole[10] = None if whole[7] is None else x.new_zeros(K, 1, leaves[2].shape[-1])
        if whole[7] is not None:
            with on_device(x):
                leaves = with_base(leaves, whole[7:])
        self.w1, self.b1, self.w2, self.b2 = leaves
        self.T, self.K = x.shape[0], self.node_weight.shape[0]
        self.D = tree_depth(self.node_weight.shape[1])
        self.W = 0 if self.w1 is None else self.w1.shape[2]
        self.node_sides = 0 if self.node_out is None else 1 if self.node_out.dim() == 3 else self.node_out.shape[2]
        self.leaf_sides = 0 if self.w2 is None else 2 if self.w2.dim() == 5 else 1
        self.plan = plan_of(self.D, self.W, config().levels)

    @property
    def out_features(self) -> int:
        return (self.w2 if self.node_out is None else self.node_out).shape[-1]

    def blocks(self, first: int, levels: int, groups: Groups, way: Tensor) -> Blocks:
        return Blocks(groups, self.K << first, self.K, self.D, first, levels, way)

    def sort(self, level: int, way: Tensor, **more: Any) -> Groups:
        """Slots, or their walkers, sorted by the node of `level` on their way."""
        return sort_slots(way, self.K << level, trees=self.K, level=level, below=self.D - level, **more)


class Call(NamedTuple):
    """What a backward knows; names as in the schema."""

    tree: Tree
    gradient: int
    grad_y: Tensor
    grad_logits: Tensor | None
    logits: Tensor
    leaf: Tensor
    hidden: Tensor
    levels: Tensor | None
