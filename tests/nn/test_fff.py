"""FFF: soft against hard, the master leaf, region leak, and what a forward allocates."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastff.nn import FFF, FeedForward
from fastff.ops import activate, use_backend

LEAF = ("leaf_w1", "leaf_b1", "leaf_w2", "leaf_b2")


def make(depth: int = 3, leaf_width: int = 2, **options: object) -> FFF:
    return FFF(6, 5, depth=depth, leaf_width=leaf_width, activation="gelu", dtype=torch.float64, **options)


def tokens(count: int = 40) -> Tensor:
    return torch.randn(count, 6, dtype=torch.float64)


def slow_soft(layer: FFF, x: Tensor) -> Tensor:
    """The definition of P1, leaf by leaf."""
    p = torch.sigmoid(x @ layer.node_weight.T + layer.node_bias)
    N = p.shape[1]
    y = torch.zeros(len(x), layer.out_features, dtype=x.dtype)
    for leaf in range(N + 1):
        weight, n = torch.ones(len(x), dtype=x.dtype), N + leaf
        while n:
            parent = (n - 1) // 2
            weight = weight * (p[:, parent] if n % 2 == 0 else 1 - p[:, parent])
            n = parent
        hidden = activate(x @ layer.leaf_w1[leaf].T + layer.leaf_b1[leaf], layer.activation)
        y = y + weight[:, None] * (hidden @ layer.leaf_w2[leaf] + layer.leaf_b2[leaf])
    return y


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_soft_training_is_the_sum_of_all_leaves_by_probability(depth):
    layer, x = make(depth), tokens()
    torch.testing.assert_close(layer(x), slow_soft(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_hard_equals_soft_where_decisions_are_certain(depth):
    layer, x = make(depth), tokens(200)
    with torch.no_grad():
        layer.node_weight *= 1e6
        layer.node_bias *= 1e6
    soft = layer.train()(x)
    torch.testing.assert_close(layer.eval()(x), soft, rtol=1e-9, atol=1e-9)
    assert len(layer.routing.leaf.unique()) > 1


@pytest.mark.parametrize("training", [True, False])
def test_equal_leaves_make_it_a_dense_layer(training):
    layer, dense, x = (
        make().train(training),
        FeedForward(6, 5, width=2, activation="gelu", dtype=torch.float64),
        tokens(),
    )
    with torch.no_grad():
        for name, p in zip(LEAF, dense.parameters(), strict=True):
            getattr(layer, name).copy_(p.expand_as(getattr(layer, name)))
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_depth_zero_is_a_dense_layer_of_the_same_weights(training):
    layer, x = make(0, 7).train(training), tokens()
    dense = FeedForward(6, 5, width=7, activation="gelu", dtype=torch.float64)
    dense.load_state_dict({name: getattr(layer, f"leaf_{name}")[0] for name in ("w1", "b1", "w2", "b2")})
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-12, atol=1e-12)


def test_harden_overrides_the_mode_both_ways():
    layer, x = make(), tokens()
    soft, hard = layer.train()(x), layer.eval()(x)
    assert not torch.allclose(soft, hard, atol=1e-3)
    for training in (True, False):
        layer.train(training)
        layer.harden = True
        assert layer.is_hard
        torch.testing.assert_close(layer(x), hard, rtol=1e-12, atol=1e-12)
        assert not layer.routing.soft
        layer.harden = False
        assert not layer.is_hard
        torch.testing.assert_close(layer(x), soft, rtol=1e-12, atol=1e-12)
        assert layer.routing.soft


@pytest.mark.parametrize("harden", [True, False])
def test_every_bias_counts_in_both_modes(harden):
    layer, x = make(harden=harden), tokens(300)
    before = layer(x)
    with torch.no_grad():
        layer.leaf_b2 += 1.5
    torch.testing.assert_close(layer(x), before + 1.5, rtol=1e-12, atol=1e-12)
    for name in ("leaf_b1", "node_bias"):
        before = layer(x)
        with torch.no_grad():
            getattr(layer, name).sub_(0.7)
        assert not torch.allclose(layer(x), before, atol=1e-3), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gate", [0.0, 1.3, -2.0])
def test_the_master_leaf_is_mixed_in_by_its_gate(training, gate):
    layer, x = make(master_width=3).train(training), tokens()
    with torch.no_grad():
        layer.master_gate.fill_(gate)
    tree = make().train(training)
    tree.load_state_dict({n: p for n, p in layer.state_dict().items() if not n.startswith("master")})
    master = F.gelu(x @ layer.master_w1.T + layer.master_b1) @ layer.master_w2 + layer.master_b2
    share = 1 / (1 + math.exp(-gate))
    torch.testing.assert_close(layer(x), share * tree(x) + (1 - share) * master, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("leak", [0.1, 0.5])
def test_region_leak_swaps_decisions_with_the_stated_probability(leak):
    layer = make(2, region_leak=leak)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.node_bias.fill_(1e3)  # every decision is right, unless swapped
        layer.leaf_b2.copy_(torch.eye(4, 5))  # the output names the leaf
    y = layer(tokens(20000))[:, :4]
    assert torch.equal(y.sum(1), torch.ones(20000, dtype=torch.float64))
    expected = torch.tensor([leak * leak, leak * (1 - leak), (1 - leak) * leak, (1 - leak) ** 2], dtype=torch.float64)
    assert ((y.mean(0) - expected).abs() < 5 * (expected * (1 - expected) / 20000).sqrt()).all()


def test_region_leak_acts_in_soft_training_only():
    layer, x = make(region_leak=0.5), tokens()
    plain = make()
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(layer(x), plain(x), atol=1e-3)
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    layer.harden = plain.harden = False
    assert torch.equal(layer(x), plain(x))  # soft, but not training
    layer.harden = plain.harden = True
    assert torch.equal(layer.train()(x), plain.train()(x))  # training, but hard


@pytest.mark.parametrize("harden", [True, False])
def test_dropout_leaves_out_hidden_neurons_in_training_only(harden):
    layer = make(2, 1, dropout=0.25, harden=harden)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.node_bias.fill_(1e3)
        layer.leaf_b1.fill_(10.0)  # gelu(10) = 10
        layer.leaf_w2.fill_(0.3)
    y = layer(tokens(10000))[:, 0]
    assert torch.allclose(y[y != 0], torch.tensor(4.0, dtype=torch.float64))
    assert (y == 0).double().mean().item() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 10000) ** 0.5)
    torch.testing.assert_close(layer.eval()(tokens(4)), torch.full((4, 5), 3.0, dtype=torch.float64))


def test_soft_training_never_holds_tokens_by_leaves_by_outputs(watch):
    T, L, W, O = 16, 64, 2, 48
    layer = FFF(4, O, depth=6, leaf_width=W)
    with watch() as seen:
        layer(torch.randn(T, 4)).sum().backward()
    assert seen.largest == max(L * W * O, T * L * W)  # T * L * O would be eight times as much


def test_hard_inference_allocates_in_proportion_to_the_path(watch):
    T, I, O, depth, W = 500, 8, 10, 7, 3
    layer = FFF(I, O, depth=depth, leaf_width=W, harden=True)
    # A watch does not see into the compiled kernels, whose memory tests/ops/test_kernels_process.py measures.
    with use_backend("reference"), torch.no_grad(), watch() as seen:
        y = layer(torch.randn(T, I))
    assert torch.isfinite(y).all()
    weights = max(p.numel() for p in layer.parameters())
    assert seen.largest <= max(T * max(I, depth + W + O), weights)
    assert seen.largest < T * 2**depth


def test_initial_values_lie_within_the_bounds_of_the_paper_and_fill_them():
    layer = FFF(16, 20, depth=4, leaf_width=4, master_width=9)
    fans = {"leaf_w2": 4, "leaf_b2": 4, "master_w2": 9, "master_b2": 9}
    for name, p in layer.named_parameters():
        if name == "master_gate":
            assert p.item() == 0
            continue
        bound = fans.get(name, 16) ** -0.5
        assert p.abs().max() <= bound, name
        assert p.numel() < 50 or p.std().item() == pytest.approx(bound / 3**0.5, rel=0.25), name
