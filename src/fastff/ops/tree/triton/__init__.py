"""The tree family on GPUs: the kernels of `fastff.ops.triton`, put together.

A tree is cut into blocks of up to six levels, 63 nodes. Tokens that reach the same block are brought together, and a
tile of them multiplies all rows of the block on the matrix units: more operations than a path has, on units that are
many times as fast, and rows are read once a tile instead of once a token. A row's bits do not depend on the batch: each
slot is a row of products of fixed shape, whatever the others are.
"""

from fastff.ops.tree.triton.backward import tree_backward as tree_backward
from fastff.ops.tree.triton.forward import tree as tree
from fastff.ops.tree.triton.forward import tree_infer as tree_infer
