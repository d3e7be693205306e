"""Pure functions, one per operator, of which every layer is made."""

from fastff.ops.activation import ACTIVATIONS, activate
from fastff.ops.backend import BACKENDS, backend_of, instruction_set, use_backend
from fastff.ops.cmm import cmm_in, cmm_out, cmm_outer
from fastff.ops.descend import descend
from fastff.ops.indexed import indexed_feedforward
from fastff.ops.leaf_probabilities import leaf_probabilities
from fastff.ops.product_keys import product_keys
from fastff.ops.tree import GRADIENTS, Leaves, Path, tree_feedforward
from fastff.ops.tree_int8 import Int8Shape, Int8Tree, quantise_experts, quantise_tree, tree_int8

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "GRADIENTS",
    "Int8Shape",
    "Int8Tree",
    "Leaves",
    "Path",
    "activate",
    "backend_of",
    "cmm_in",
    "cmm_out",
    "cmm_outer",
    "descend",
    "indexed_feedforward",
    "instruction_set",
    "leaf_probabilities",
    "product_keys",
    "quantise_experts",
    "quantise_tree",
    "tree_feedforward",
    "tree_int8",
    "use_backend",
]
