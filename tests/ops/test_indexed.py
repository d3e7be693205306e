"""The indexed feedforward against a loop over tokens and experts."""

import pytest
import torch
from torch import Tensor

from fastff.ops import activate, indexed_feedforward


def arguments(T: int, S: int, E: int, W: int, I: int, O: int) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    x, gate = torch.randn(T, I, dtype=torch.float64), torch.randn(T, S, dtype=torch.float64)
    weights = [torch.randn(s, dtype=torch.float64) for s in ((E, W, I), (E, W), (E, W, O), (E, O))]
    return x.requires_grad_(), torch.randint(E, (T, S)), [w.requires_grad_() for w in weights], gate.requires_grad_()


def slow(x: Tensor, index: Tensor, weights: list[Tensor], gate: Tensor, activation: str) -> Tensor:
    w1, b1, w2, b2 = weights
    rows = [
        sum(g * (activate(x_t @ w1[e].T + b1[e], activation) @ w2[e] + b2[e]) for e, g in zip(i_t, g_t, strict=True))
        for x_t, i_t, g_t in zip(x, index.tolist(), gate, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("activation", ["relu", "gelu", "identity"])
@pytest.mark.parametrize("sizes", [(5, 2, 9, 3, 4, 2), (30, 2, 3, 4, 3, 5), (4, 1, 1, 1, 1, 1)], ids=str)
def test_value_and_gradients_equal_the_loop(sizes, activation):
    x, index, weights, gate = arguments(*sizes)
    inputs = [x, *weights, gate]
    y = indexed_feedforward(x, index, *weights, activation=activation, gate=gate)
    u = torch.randn_like(y)
    gradients = torch.autograd.grad((y * u).sum(), inputs)
    expected = slow(x, index, weights, gate, activation)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    for g, e in zip(gradients, torch.autograd.grad((expected * u).sum(), inputs), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10)


def test_without_gate_each_expert_counts_once():
    x, index, weights, gate = arguments(6, 3, 4, 2, 3, 2)
    y = indexed_feedforward(x, index, *weights, activation="relu")
    torch.testing.assert_close(y, slow(x, index, weights, torch.ones_like(gate), "relu"))


def test_the_gradient_of_a_gate_of_zero_is_what_the_expert_would_have_put_out():
    x, index, weights, gate = arguments(6, 1, 4, 2, 3, 2)
    gate = torch.zeros_like(gate, requires_grad=True)
    y = indexed_feedforward(x, index, *weights, gate=gate)
    assert torch.count_nonzero(y) == 0
    y.sum().backward()
    torch.testing.assert_close(gate.grad[:, 0], slow(x, index, weights, torch.ones_like(gate), "relu").sum(1))


def test_dropout_leaves_out_hidden_neurons_and_scales_the_rest():
    x, index, weights, _ = arguments(4000, 1, 1, 1, 2, 1)
    x = torch.ones_like(x)
    w1, b1, w2, b2 = (torch.ones_like(w) for w in weights)
    y = indexed_feedforward(x, index, w1, b1, w2, b2, dropout=0.25) - 1  # without dropout 3
    assert sorted(y.unique().tolist()) == [0, 4]
    assert (y == 0).double().mean().item() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 4000) ** 0.5)


def test_no_tokens_and_no_experts_a_token():
    x, index, weights, _ = arguments(4, 2, 3, 2, 3, 5)
    assert indexed_feedforward(x[:0], index[:0], *weights).shape == (0, 5)
    y = indexed_feedforward(x, index[:, :0], *weights)
    assert torch.equal(y, torch.zeros(4, 5, dtype=torch.float64))
    y.sum().backward()
    assert torch.count_nonzero(weights[0].grad) == 0


def test_low_precision_bias_gradients_are_summed_in_float32():
    T, bf16 = 3000, torch.bfloat16
    weights = [torch.zeros(1, 1, 1), torch.zeros(1, 1), torch.ones(1, 1, 1), torch.zeros(1, 1)]
    w1, b1, w2, b2 = (w.to(bf16).requires_grad_() for w in weights)
    index = torch.zeros(T, 1, dtype=torch.int64)
    indexed_feedforward(torch.ones(T, 1, dtype=bf16), index, w1, b1, w2, b2, activation="identity").sum().backward()
    expected = torch.tensor(float(T)).to(bf16).item()  # summed in bfloat16 it stops at 256
    assert [p.grad.item() for p in (w1, b1, b2)] == [expected] * 3
