from fastff.ops.tree_int8.function import tree_int8
from fastff.ops.tree_int8.quantise import quantise_experts, quantise_rows, quantise_tree
from fastff.ops.tree_int8.reference import Int8Shape, Int8Tree

__all__ = ["Int8Shape", "Int8Tree", "quantise_experts", "quantise_rows", "quantise_tree", "tree_int8"]
