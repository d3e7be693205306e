"""The noisy top-k mixture against the formulas of Shazeer et al., appendix A."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastff.nn import MoE, auxiliary_loss, balance_experts

F64 = torch.float64


def make(experts: int = 5, top_k: int = 2, dtype: torch.dtype = F64, **options: object) -> MoE:
    layer = MoE(6, 4, experts=experts, expert_width=3, top_k=top_k, dtype=dtype, **options)
    with torch.no_grad():
        layer.gate_weight.normal_()
        layer.noise_weight.normal_()
    return layer


def expert(layer: MoE, e: int, x: Tensor) -> Tensor:
    return F.relu(x @ layer.expert_w1[e].T + layer.expert_b1[e]) @ layer.expert_w2[e] + layer.expert_b2[e]


def forward_with_known_noise(layer: MoE, x: Tensor) -> Tensor:
    """Runs the layer; returns the noise that it drew, (T, E)."""
    torch.manual_seed(3)
    layer(x)
    torch.manual_seed(3)
    return torch.randn_like(x @ layer.gate_weight.T)


def squared_cv(v: Tensor) -> Tensor:
    mean = v.sum() / len(v)
    return ((v - mean) ** 2).sum() / len(v) / mean**2


@pytest.mark.parametrize("training", [True, False])
def test_with_all_experts_it_is_the_softmax_mixture(training):
    layer, x = make(top_k=5).train(training), torch.randn(9, 6, dtype=F64)
    if training:
        with torch.no_grad():
            layer.noise_weight.zero_()
        logits = x @ layer.gate_weight.T + math.log(2) * forward_with_known_noise(layer, x)
        torch.manual_seed(3)
    else:
        logits = x @ layer.gate_weight.T
    gates = logits.softmax(-1)
    expected = sum(gates[:, e, None] * expert(layer, e, x) for e in range(5))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_best_experts_are_mixed_by_softmax_over_them(top_k):
    layer, x = make(top_k=top_k).eval(), torch.randn(20, 6, dtype=F64)
    y = layer(x)
    for t in range(20):
        logits = (x[t] @ layer.gate_weight.T).detach()
        best = sorted(range(5), key=lambda e: -logits[e].item())[:top_k]
        total = sum(math.exp(logits[e]) for e in best)
        expected = sum(math.exp(logits[e]) / total * expert(layer, e, x[t]) for e in best)
        torch.testing.assert_close(y[t], expected, rtol=1e-10, atol=1e-12)
        assert sorted(layer.routing.leaf[t].tolist()) == sorted(best)


def test_noise_is_normal_times_softplus_and_only_in_training():
    layer, x = make(), torch.randn(30, 6, dtype=F64)
    noise = forward_with_known_noise(layer, x)
    logits = x @ layer.gate_weight.T + noise * F.softplus(x @ layer.noise_weight.T)
    assert torch.equal(layer.routing.leaf, logits.topk(2).indices)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(layer.routing.leaf, (x @ layer.gate_weight.T).topk(2).indices)


def importance_and_load_by_hand(layer: MoE, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Appendix A, element by element: Importance = sum of gates, Load = sum of P(x, i)."""
    T, E, k = len(x), layer.experts, layer.top_k
    clean, scale = x @ layer.gate_weight.T, F.softplus(x @ layer.noise_weight.T)
    H = clean + noise * scale
    importance, load = [torch.zeros((), dtype=F64)] * E, [torch.zeros((), dtype=F64)] * E
    for t in range(T):
        best = H[t].topk(k).indices.tolist()
        gates = H[t, best].softmax(0)
        for i in range(E):
            if i in best:
                importance[i] = importance[i] + gates[best.index(i)]
            others = torch.stack([H[t, j] for j in range(E) if j != i])
            kth_excluding = others.sort(descending=True).values[k - 1]
            load[i] = load[i] + 0.5 * (1 + torch.erf((clean[t, i] - kth_excluding) / scale[t, i] / math.sqrt(2)))
    return torch.stack(importance), torch.stack(load)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_importance_and_load_losses_and_their_gradients_equal_appendix_a(top_k):
    layer, x = make(top_k=top_k), torch.randn(12, 6, dtype=F64)
    noise = forward_with_known_noise(layer, x)
    importance, load = importance_and_load_by_hand(layer, x, noise)
    routing = layer.routing
    torch.testing.assert_close(routing.importance.double(), importance, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(routing.load.double(), load, rtol=1e-5, atol=1e-5)
    parameters = (layer.gate_weight, layer.noise_weight)
    for name, by_hand in (("importance", squared_cv(importance)), ("load", squared_cv(load))):
        loss = auxiliary_loss(layer, **{name: 1.0})
        torch.testing.assert_close(loss.double(), by_hand, rtol=1e-5, atol=1e-6)
        actual = torch.autograd.grad(loss, parameters, retain_graph=True)
        expected = torch.autograd.grad(by_hand, parameters, retain_graph=True)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
    both = auxiliary_loss(layer, importance=0.1, load=0.3)
    torch.testing.assert_close(
        both.double(), 0.1 * squared_cv(importance) + 0.3 * squared_cv(load), rtol=1e-5, atol=1e-6
    )


def test_the_load_estimate_is_the_frequency_of_being_chosen():
    layer = make(dtype=torch.float32)
    with torch.no_grad():
        layer.gate_weight.mul_(0.3)
    draws = 20000
    layer(torch.randn(1, 6).expand(draws, 6))
    frequency = layer.routing.leaf_counts[0] / draws
    estimate = layer.routing.load / draws
    assert frequency.min() < frequency.max() - 0.1
    assert ((estimate - frequency).abs() < 5 * 2 * (frequency * (1 - frequency) / draws).sqrt() + 1e-4).all()


@pytest.mark.parametrize(("training", "top_k"), [(False, 2), (True, 5)])
def test_without_noise_that_decides_the_load_is_the_plain_count(training, top_k):
    layer = make(top_k=top_k).train(training)
    layer(torch.randn(40, 6, dtype=F64))
    assert torch.equal(layer.routing.load, layer.routing.leaf_counts[0].float())
    assert layer.routing.leaf_counts.sum() == 40 * top_k


def test_the_load_starts_even_and_equal_use_costs_nothing():
    layer = MoE(6, experts=4, expert_width=2, top_k=1)
    assert torch.count_nonzero(layer.gate_weight) == torch.count_nonzero(layer.noise_weight) == 0
    layer(torch.randn(20000, 6))
    losses = layer.routing.losses()
    assert losses["importance"] < 2e-3
    assert losses["load"] < 2e-3
    assert layer.routing.effective_leaves.item() == pytest.approx(4, abs=0.01)


def test_one_crowded_expert_costs_its_squared_variation():
    layer = MoE(6, experts=4, expert_width=2, top_k=1).eval()
    with torch.no_grad():
        layer.gate_weight[2, 0] = 1.0
    layer(torch.rand(10, 6) + 0.1)
    assert layer.routing.leaf_counts.tolist() == [[0, 0, 10, 0]]
    assert layer.routing.losses()["importance"].item() == pytest.approx(3)  # mean 2.5, variance 18.75
    assert layer.routing.effective_leaves.item() == pytest.approx(1)


def test_a_single_expert_is_a_dense_layer():
    layer, x = make(experts=1, top_k=1), torch.randn(7, 6, dtype=F64)
    torch.testing.assert_close(layer(x), expert(layer, 0, x), rtol=1e-12, atol=1e-12)
    assert auxiliary_loss(layer, importance=1, load=1).item() == 0


def test_dropout_only_in_training_and_block_counts():
    layer, x = make(dropout=0.5), torch.randn(50, 6, dtype=F64)
    with torch.no_grad():
        layer.noise_weight.fill_(0)
        layer.gate_weight.mul_(1e4)  # noise decides nothing
    assert not torch.allclose(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    counts = layer.block_counts()
    assert set(counts) == {"expert_w1", "expert_b1", "expert_w2", "expert_b2"}
    assert all(torch.equal(c, torch.bincount(layer.routing.leaf.flatten(), minlength=5)) for c in counts.values())


def test_without_noise_training_and_inference_are_one_function():
    layer, x = MoE(6, 4, experts=5, expert_width=3, noise=False), torch.randn(40, 6)
    assert not hasattr(layer, "noise_weight")
    assert layer.gate_weight.abs().max() > 0
    assert torch.equal(layer.train()(x), layer.eval()(x))
    layer.train()(x)
    counts = layer.routing.leaf_counts[0]
    assert torch.equal(layer.routing.load, counts.float())
    auxiliary_loss(layer, importance=1.0).backward()
    assert layer.gate_weight.grad.abs().max() > 0
    assert layer.multiply_adds(training=True) == layer.multiply_adds(training=False)


def test_loss_free_chooses_with_the_bias_and_weighs_without():
    layer = MoE(6, 4, experts=5, expert_width=3, noise=False, loss_free=True, dtype=F64)
    layer.choice_bias.copy_(torch.tensor([9.0, 0, 0, 0, -9]))  # the first for all, the last for none
    x = torch.randn(40, 6, dtype=F64)
    y, affinity = layer(x), torch.sigmoid(x @ layer.gate_weight.T)
    second = affinity[:, 1:4].argmax(1) + 1
    gates = torch.stack([affinity[:, 0], affinity.gather(1, second[:, None])[:, 0]], 1)
    gates = gates / gates.sum(1, keepdim=True)
    expected = [
        g[0] * expert(layer, 0, t) + g[1] * expert(layer, int(e), t) for t, e, g in zip(x, second, gates, strict=True)
    ]
    torch.testing.assert_close(y, torch.stack(expected), rtol=1e-10, atol=1e-12)
    y.sum().backward()
    assert layer.gate_weight.grad[0].abs().max() > 0
    assert layer.gate_weight.grad[4].abs().max() == 0
    assert "choice_bias" in layer.state_dict()


def test_balancing_evens_the_load():
    torch.manual_seed(0)
    layer, x = MoE(6, experts=8, expert_width=2, noise=False, loss_free=True), torch.randn(2000, 6)
    with torch.no_grad():
        layer.gate_weight[0] = 3 * x.mean(0) + 2  # with more tokens than its share
    layer(x)
    before = layer.routing.leaf_usage.max()
    layer.choice_bias.zero_()
    balance_experts(layer, 0.5)
    assert torch.equal(layer.choice_bias, 0.5 * torch.sign(500 - layer.routing.leaf_counts[0].float()))
    layer.choice_bias.zero_()
    for _ in range(400):
        layer(x)
        balance_experts(layer, 0.003)
    assert before > 0.18
    assert layer.routing.leaf_usage.max() < 0.14
    with pytest.raises(ValueError, match="rate must be a positive number, got 0"):
        balance_experts(layer, 0)
    balance_experts(MoE(6, experts=2, expert_width=2))  # nothing to do, though it has not run
