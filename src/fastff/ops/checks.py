"""What operators ask of their arguments; each check names the argument, what came and what was expected."""

import torch
from torch import Tensor


def check_cmm(rows: Tensor, weight_BWI: Tensor, index_TS: Tensor) -> None:
    """Check `rows`, (T, I) or (T, S, W), against the blocks of `weight` and the blocks that `index` names."""
    if weight_BWI.dim() != 3:
        raise ValueError(f"weight must be of shape (blocks, rows, columns), got {tuple(weight_BWI.shape)}")
    if index_TS.dim() != 2 or index_TS.dtype != torch.int64:
        raise TypeError(
            f"index must be int64 of shape (tokens, blocks a token), got {index_TS.dtype} {tuple(index_TS.shape)}"
        )
    if rows.dtype != weight_BWI.dtype:
        raise TypeError(f"weight must have the dtype of the tokens, got {weight_BWI.dtype} and {rows.dtype}")
    _, W, I = weight_BWI.shape
    T, S = index_TS.shape
    expected = (T, I) if rows.dim() == 2 else (T, S, W)
    if tuple(rows.shape) != expected:
        raise ValueError(f"the tokens must be of shape {expected} to fit weight and index, got {tuple(rows.shape)}")


def tree_depth(nodes: int) -> int:
    """Levels of a complete binary tree of `nodes` = 2^levels - 1 nodes.

    Raises:
        ValueError: no complete tree has that many nodes.
    """
    levels = (nodes + 1).bit_length() - 1
    if nodes != 2**levels - 1:
        raise ValueError(f"a complete binary tree has 2^depth - 1 nodes, got {nodes}")
    return levels
