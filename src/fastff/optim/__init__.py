"""Optimisers that know which samples a node, a leaf or an expert has seen."""

from fastff.optim.blockwise import BlockwiseAdam, BlockwiseSGD
from fastff.optim.rowwise import RowwiseAdamW

__all__ = ["BlockwiseAdam", "BlockwiseSGD", "RowwiseAdamW"]
