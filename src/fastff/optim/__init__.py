"""Optimisers that know which samples a node, a leaf or an expert has seen."""

from fastff.optim.blockwise import BlockwiseAdam, BlockwiseSGD

__all__ = ["BlockwiseAdam", "BlockwiseSGD"]
