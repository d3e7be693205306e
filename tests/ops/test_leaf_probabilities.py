"""The probability of every leaf against the product along its path."""

import pytest
import torch
from torch import Tensor

from fastff.ops import leaf_probabilities


def slow_leaf_probabilities(p: Tensor) -> Tensor:
    N = p.shape[1]
    columns = []
    for leaf in range(N, 2 * N + 1):
        product, n = torch.ones(len(p), dtype=p.dtype), leaf
        while n:
            parent = (n - 1) // 2
            product = product * (p[:, parent] if n == 2 * parent + 2 else 1 - p[:, parent])
            n = parent
        columns.append(product)
    return torch.stack(columns, 1)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_equals_the_product_along_the_path(depth, tokens):
    p = torch.rand(tokens, 2**depth - 1, dtype=torch.float64)
    result = leaf_probabilities(p)
    assert result.shape == (tokens, 2**depth)
    torch.testing.assert_close(result, slow_leaf_probabilities(p), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(result.sum(1), torch.ones(tokens, dtype=torch.float64))


def test_certain_decisions_give_one_leaf():
    p = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert leaf_probabilities(p).tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_derivatives():
    p = (torch.rand(3, 7, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(leaf_probabilities, p)
    assert torch.autograd.gradgradcheck(leaf_probabilities, p)
    assert leaf_probabilities(p[:, :0]).requires_grad  # depth 0 stays in the graph


def test_a_number_of_nodes_that_no_tree_has_raises():
    with pytest.raises(ValueError, match="got 4"):
        leaf_probabilities(torch.rand(2, 4))
