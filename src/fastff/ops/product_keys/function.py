"""Product keys: of n^2 pairs of keys the best for a query, for the price of 2 n products."""

import torch
from torch import Tensor

from fastff.ops.backend import backend_of
from fastff.ops.checks import check_reverse_mode
from fastff.ops.product_keys import op, reference  # noqa: F401  (op registers the operator)


def product_keys(query: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of all pairs of a key i of the first and a key j of the second half, for each query.

    A pair's score is the product of key i with the query's first half plus that of key j with its second (Lample et al.
    2019, "Large Memory Layers with Product Keys", section 3.1). On GPUs it runs on the reference.

    Args:
        query: (..., F), floating point, F even.
        keys: (2, n, F / 2), dtype of `query`.
        count: from 1 to n^2.

    Returns:
        score (..., count), descending, differentiable; and the pairs, n i + j, (..., count) int64. Of equal scores any
        may be chosen. The compiled kernels compare in float32.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit together, or a count out of range.
        NotImplementedError: within forward-mode differentiation.
    """
    check_reverse_mode()
    if keys.dim() != 3 or len(keys) != 2 or query.shape[-1:] != (2 * keys.shape[2],):
        raise ValueError(f"keys (2, n, F / 2) must fit query (..., F), got {tuple(keys.shape)}, {tuple(query.shape)}")
    if keys.dtype != query.dtype:
        raise TypeError(f"query and keys must share a dtype, got {query.dtype} and {keys.dtype}")
    if not 1 <= count <= keys.shape[1] ** 2:
        raise ValueError(f"count must be from 1 to {keys.shape[1] ** 2}, as there are so many pairs, got {count}")
    if backend_of(query) != "cpu":
        return reference.product_keys(query, keys, count)
    score, pair = torch.ops.fastff.product_keys.default(query.flatten(0, -2).float(), keys.float(), count)
    shape = (*query.shape[:-1], count)
    return score.view(shape).to(query.dtype), pair.view(shape)
