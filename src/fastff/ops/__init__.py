"""Pure functions, one per operator, of which every layer is made."""

from fastff.ops.activation import ACTIVATIONS, activate
from fastff.ops.backend import BACKENDS, backend_of, instruction_set, use_backend
from fastff.ops.cmm import cmm_in, cmm_out, cmm_outer
from fastff.ops.descend import descend
from fastff.ops.indexed import indexed_feedforward
from fastff.ops.leaf_probabilities import leaf_probabilities
from fastff.ops.tree import GRADIENTS, Leaves, Path, tree_feedforward

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "GRADIENTS",
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
    "tree_feedforward",
    "use_backend",
]
