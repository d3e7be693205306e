"""Routing down a tree against a loop over tokens, trees and levels."""

import math

import pytest
import torch
from torch import Tensor

from fastff.ops import descend


def slow_descend(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    K, N = bias.shape
    D = int(math.log2(N + 1))
    logits, nodes = x.new_empty(len(x), K, D), torch.empty(len(x), K, D, dtype=torch.int64)
    for t in range(len(x)):
        for k in range(K):
            n = 0
            for level in range(D):
                z = float(weight[k, n] @ x[t] + bias[k, n])
                logits[t, k, level], nodes[t, k, level] = z, n
                n = 2 * n + 2 if z >= 0 else 2 * n + 1
    return logits, nodes


def tree(T: int, I: int, K: int, D: int, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    N = 2**D - 1
    return tuple(torch.randn(s, dtype=torch.float64, requires_grad=grad) for s in ((T, I), (K, N, I), (K, N)))


@pytest.mark.parametrize("sizes", [(9, 3, 1, 1), (9, 1, 3, 4), (31, 63, 2, 5), (0, 3, 2, 2), (5, 3, 2, 0)], ids=str)
def test_equals_the_loop(sizes):
    x, weight, bias = tree(*sizes)
    logits, nodes = descend(x, weight, bias)
    expected_logits, expected_nodes = slow_descend(x, weight, bias)
    assert torch.equal(nodes, expected_nodes)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-12, atol=1e-12)


def test_a_logit_of_zero_goes_right_and_the_next_below_it_left():
    weight, bias = torch.zeros(1, 7, 2), torch.zeros(1, 7)
    x = torch.ones(1, 2)
    assert descend(x, weight, bias)[1].tolist() == [[[0, 2, 6]]]
    assert descend(x, weight, -bias)[1].tolist() == [[[0, 2, 6]]]  # also the negative zero
    assert descend(x, weight, bias - 1e-45)[1].tolist() == [[[0, 1, 3]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_goes_left(dtype):
    weight, bias = torch.ones(2, 3, 2, dtype=dtype), torch.ones(2, 3, dtype=dtype)
    logits, nodes = descend(torch.tensor([[math.nan, 1.0], [1.0, 1.0]], dtype=dtype), weight, bias)
    assert nodes.tolist() == [[[0, 1]] * 2, [[0, 2]] * 2]
    assert logits[0].isnan().all()
    assert logits[1].isfinite().all()


def test_depth_zero_has_no_decisions():
    logits, nodes = descend(*tree(4, 3, 2, 0))
    assert logits.shape == nodes.shape == (4, 2, 0)
    assert nodes.dtype == torch.int64


def test_gradients_equal_those_of_the_formula():
    x, weight, bias = inputs = tree(20, 3, 2, 3, grad=True)
    logits, nodes = descend(x, weight, bias)
    trees = torch.arange(2).view(1, 2, 1)
    formula = torch.einsum("ti,tkdi->tkd", x, weight[trees, nodes]) + bias[trees, nodes]
    u = torch.randn_like(formula)
    for g, e in zip(
        torch.autograd.grad((logits * u).sum(), inputs), torch.autograd.grad((formula * u).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)
    assert not nodes.requires_grad


def test_second_derivatives_and_opcheck():
    inputs = tree(4, 3, 2, 2, grad=True)
    assert torch.autograd.gradcheck(lambda *a: descend(*a)[0], inputs)
    assert torch.autograd.gradgradcheck(lambda *a: descend(*a)[0], inputs)
    torch.library.opcheck(descend, inputs)
    torch.library.opcheck(descend, tree(4, 3, 2, 0, grad=True))


def test_each_input_alone_may_need_a_gradient():
    inputs = tree(6, 3, 2, 2)
    for i in range(3):
        mine = [t.clone().requires_grad_(i == j) for j, t in enumerate(inputs)]
        descend(*mine)[0].sum().backward()
        assert [t.grad is not None for t in mine] == [i == j for j in range(3)]


def test_low_precision_bias_gradients_are_summed_in_float32():
    x, weight = torch.ones(3000, 1, dtype=torch.bfloat16), torch.ones(1, 1, 1, dtype=torch.bfloat16)
    bias = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    descend(x, weight, bias)[0].sum().backward()
    assert bias.grad.item() == torch.tensor(3000.0).bfloat16().item()  # summed in bfloat16 it stops at 256


def test_bad_arguments_raise():
    x, weight, bias = tree(4, 3, 2, 2)
    with pytest.raises(ValueError, match=r"agree in I.*\(4, 2\)"):
        descend(x[:, :2], weight, bias)
    with pytest.raises(ValueError, match=r"bias must be of shape \(2, 3\), got \(2, 2\)"):
        descend(x, weight, bias[:, :2])
    with pytest.raises(ValueError, match=r"2\^depth - 1 nodes, got 2"):
        descend(x, weight[:, :2], bias[:, :2])
    with pytest.raises(TypeError, match="share a dtype"):
        descend(x.float(), weight, bias)
