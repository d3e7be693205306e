"""UltraFFF against a loop written from the facts of P2."""

import math

import pytest
import torch
from torch import Tensor

from fastff.nn import TreeFeedForward, UltraFFF


@torch.no_grad()
def slow_ultra(layer: UltraFFF, x: Tensor) -> Tensor:
    """From the root, on depth + 1 levels: v = w_in . x + b_in, add gelu(v) * w_out, go right when v >= 0."""
    y = torch.zeros(len(x), layer.out_features, dtype=x.dtype)
    for t in range(len(x)):
        for k in range(layer.trees):
            n = 0
            for _ in range(layer.depth + 1):
                v = float(layer.w_in[k, n] @ x[t] + layer.b_in[k, n])
                y[t] += v * 0.5 * (1 + math.erf(v / math.sqrt(2))) * layer.w_out[k, n]
                n = 2 * n + 2 if v >= 0 else 2 * n + 1
    return y


@pytest.mark.parametrize(("depth", "trees"), [(0, 1), (0, 5), (1, 1), (4, 1), (3, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_loop_in_training_and_inference(depth, trees, training):
    layer = UltraFFF(6, 5, depth=depth, trees=trees, dtype=torch.float64).train(training)
    x = torch.randn(30, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), slow_ultra(layer, x), rtol=1e-12, atol=1e-12)


def test_equals_the_general_tree_with_leaves_of_one_neuron_in_outputs_and_gradients():
    D, K = 3, 2
    ultra = UltraFFF(6, 5, depth=D, trees=K, dtype=torch.float64)
    tree = TreeFeedForward(
        6,
        5,
        depth=D,
        leaf_width=1,
        trees=K,
        two_sided=False,
        shared_base=False,
        gradient="none",
        dtype=torch.float64,
    )
    inner = 2**D - 1
    with torch.no_grad():
        tree.node_weight.copy_(ultra.w_in[:, :inner])
        tree.node_bias.copy_(ultra.b_in[:, :inner])
        tree.node_out.copy_(ultra.w_out[:, :inner].unsqueeze(2))
        tree.leaf_w1.copy_(ultra.w_in[:, inner:].unsqueeze(2))
        tree.leaf_b1.copy_(ultra.b_in[:, inner:].unsqueeze(2))
        tree.leaf_w2.copy_(ultra.w_out[:, inner:].unsqueeze(2))
        tree.leaf_b2.zero_()
    x = torch.randn(40, 6, dtype=torch.float64)
    y, expected = ultra(x), tree(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    y.square().sum().backward()
    expected.square().sum().backward()
    for mine, nodes, leaves in (
        (ultra.w_in, tree.node_weight, tree.leaf_w1),
        (ultra.b_in, tree.node_bias, tree.leaf_b1),
        (ultra.w_out, tree.node_out, tree.leaf_w2),
    ):
        joined = torch.cat([g.grad.reshape(K, -1, *mine.shape[2:]) for g in (nodes, leaves)], 1)
        torch.testing.assert_close(mine.grad, joined, rtol=1e-10, atol=1e-10)
    assert torch.equal(ultra.routing.leaf, tree.routing.leaf)
    torch.testing.assert_close(ultra.routing.logits, tree.routing.logits, rtol=1e-12, atol=1e-12)
    assert torch.equal(ultra.routing.nodes, tree.routing.nodes)


def test_trees_are_summed():
    layer = UltraFFF(6, 5, depth=2, trees=3, dtype=torch.float64)
    x = torch.randn(9, 6, dtype=torch.float64)
    total = torch.zeros(9, 5, dtype=torch.float64)
    for k in range(3):
        single = UltraFFF(6, 5, depth=2, dtype=torch.float64)
        single.load_state_dict({name: p[k : k + 1] for name, p in layer.state_dict().items()})
        total = total + single(x)
    torch.testing.assert_close(layer(x), total, rtol=1e-12, atol=1e-12)


def test_many_trees_of_depth_zero_are_a_dense_layer_without_second_bias():
    layer = UltraFFF(6, 5, depth=0, trees=20, dtype=torch.float64)
    x = torch.randn(9, 6, dtype=torch.float64)
    hidden = torch.nn.functional.gelu(x @ layer.w_in[:, 0].T + layer.b_in[:, 0])
    torch.testing.assert_close(layer(x), hidden @ layer.w_out[:, 0], rtol=1e-12, atol=1e-12)


def test_only_neurons_on_the_path_get_gradients():
    layer = UltraFFF(6, 5, depth=4, dtype=torch.float64)
    layer(torch.randn(1, 6, dtype=torch.float64)).sum().backward()
    for p in layer.parameters():
        assert (p.grad[0].flatten(start_dim=1).abs().sum(1) if p.dim() == 3 else p.grad[0].abs()).count_nonzero() == 5


def test_routing_counts_every_neuron_that_ran():
    layer = UltraFFF(6, 5, depth=3, trees=2)
    layer(torch.randn(50, 6))
    counts = layer.block_counts()
    assert set(counts) == {"w_in", "b_in", "w_out"}
    for count in counts.values():
        assert count.shape == (2, 15)
        assert count[:, 0].tolist() == [50, 50]
        for level in range(4):
            assert count[:, 2**level - 1 : 2 ** (level + 1) - 1].sum(1).tolist() == [50, 50]


def test_decisions_are_views_of_the_inner_neurons():
    layer = UltraFFF(6, 5, depth=3, trees=2)
    weight, bias = layer.decisions()
    assert weight.shape == (2, 7, 6)
    assert bias.shape == (2, 7)
    with torch.no_grad():
        weight.fill_(2.0)
    assert (layer.w_in[:, :7] == 2).all()
    assert (layer.w_in[:, 7:] != 2).all()
