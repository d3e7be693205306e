from fastff.ops.tree.function import tree_feedforward
from fastff.ops.tree.op import GRADIENTS
from fastff.ops.tree.reference import Leaves, Path

__all__ = ["GRADIENTS", "Leaves", "Path", "tree_feedforward"]
