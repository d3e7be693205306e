"""Pure functions, one per operator, of which every layer is made."""

from fastff.ops.activation import ACTIVATIONS, activate
from fastff.ops.cmm import cmm_in, cmm_out, cmm_outer
from fastff.ops.descend import descend
from fastff.ops.indexed_feedforward import indexed_feedforward
from fastff.ops.leaf_probabilities import leaf_probabilities
from fastff.ops.tree_feedforward import GRADIENTS, Leaves, Path, contribute, tree_feedforward

__all__ = [
    "ACTIVATIONS",
    "GRADIENTS",
    "Leaves",
    "Path",
    "activate",
    "cmm_in",
    "cmm_out",
    "cmm_outer",
    "contribute",
    "descend",
    "indexed_feedforward",
    "leaf_probabilities",
    "tree_feedforward",
]
