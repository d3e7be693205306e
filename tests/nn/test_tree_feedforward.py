"""TreeFeedForward: the shared base and its merging, the same function in both modes, what learns."""

import copy

import pytest
import torch
from torch import nn

from fastff.nn import FeedForward, TreeFeedForward, merge_base
from fastff.ops import GRADIENTS, Leaves, tree_feedforward, use_backend

LEAF = ("leaf_w1", "leaf_b1", "leaf_w2", "leaf_b2")


def make(dtype: torch.dtype = torch.float32, **options: object) -> TreeFeedForward:
    layer = TreeFeedForward(6, 5, **({"depth": 3, "leaf_width": 2} | options), dtype=dtype)
    with torch.no_grad():
        for p in layer.parameters():  # offsets start at 0, where a mistake would not show
            p.add_(0.2 * torch.randn_like(p))
    return layer


@pytest.mark.parametrize("trees", [1, 3])
def test_is_the_operator_on_base_plus_offset(trees):
    layer, x = make(torch.float64, trees=trees), torch.randn(20, 6, dtype=torch.float64)
    leaves = Leaves(*(getattr(layer, n) + getattr(layer, n.replace("leaf", "base")) for n in LEAF))
    y, path = tree_feedforward(x, layer.node_weight, layer.node_bias, layer.node_out, leaves)
    torch.testing.assert_close(layer(x), y, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.routing.leaf, path.leaf)


@pytest.mark.parametrize("trees", [1, 3])
def test_merging_the_base_keeps_outputs_and_drops_its_parameters(trees):
    model = nn.Sequential(make(trees=trees), nn.Linear(5, 6), make(shared_base=False))
    x = torch.randn(50, 6)
    before, names = model(x), {name for name, _ in model.named_parameters()}
    assert merge_base(model) is model
    torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-6)
    dropped = {f"0.{n.replace('leaf', 'base')}" for n in LEAF}
    assert {name for name, _ in model.named_parameters()} == names - dropped
    assert set(model.state_dict()) == names - dropped
    assert not model[0].shared_base
    again = copy.deepcopy(model.state_dict())
    merge_base(model)
    assert all(torch.equal(p, again[name]) for name, p in model.state_dict().items())
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_merged_layer_loads_into_one_made_without_base():
    layer, x = make(), torch.randn(9, 6)
    layer.merge_base()
    other = make(shared_base=False)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_a_single_leaf_has_no_base_beside_it():
    layer = TreeFeedForward(6, 5, depth=0, leaf_width=3)
    assert not layer.shared_base
    assert not [name for name, _ in layer.named_parameters() if name.startswith("base")]
    assert all(p.abs().sum() > 0 for p in (layer.leaf_w1, layer.leaf_w2))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_training_and_inference_compute_the_same(gradient):
    layer, x = make(torch.float64, gradient=gradient, trees=2), torch.randn(50, 6, dtype=torch.float64)
    training = layer.train()(x)
    torch.testing.assert_close(layer.eval()(x), training, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), training, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_leaf_that_saw_no_token_has_zero_gradient_and_its_base_has_not(gradient):
    layer = make(gradient=gradient)
    layer(torch.randn(2, 6)).sum().backward()
    used = layer.routing.leaf_counts[0] > 0
    assert 0 < used.sum() <= 2
    for name in LEAF:
        gradients = getattr(layer, name).grad[0].flatten(1).abs().sum(1)
        assert torch.count_nonzero(gradients[~used]) == 0
        assert (gradients[used] > 0).all()
        base = getattr(layer, name.replace("leaf", "base")).grad[0, 0]
        torch.testing.assert_close(base, getattr(layer, name).grad[0].sum(0), rtol=1e-5, atol=1e-6)


def test_offsets_start_at_zero_so_that_all_leaves_are_alike():
    layer = TreeFeedForward(6, 5, depth=3, leaf_width=2)
    assert all(torch.count_nonzero(getattr(layer, name)) == 0 for name in LEAF)
    with torch.no_grad():
        layer.node_out.zero_()
    x = torch.randn(1, 6)
    z = x @ layer.base_w1[0, 0].T + layer.base_b1[0, 0]
    left, right = layer.base_w2[0, 0].unbind(1)
    base = torch.relu(-z) @ left + torch.relu(z) @ right
    torch.testing.assert_close(layer(x), base + layer.base_b2[0, 0], rtol=1e-5, atol=1e-6)


def test_initial_outputs_are_as_large_as_those_of_a_dense_layer_of_the_executed_width():
    tree = TreeFeedForward(64, depth=4, leaf_width=28, two_sided=False)
    x = torch.randn(2000, 64)
    w1, w2 = nn.Linear(64, 32), nn.Linear(32, 64)
    dense = w2(nn.functional.gelu(w1(x)))
    assert tree(x).std().item() == pytest.approx(dense.std().item(), rel=0.3)


def test_block_counts_name_nodes_and_leaves_but_no_base():
    layer = make(trees=2)
    layer(torch.randn(30, 6))
    counts = layer.block_counts()
    assert set(counts) == {"node_weight", "node_bias", "node_out", *LEAF}
    for name, count in counts.items():
        assert count.shape == getattr(layer, name).shape[:2]
        assert count.dtype == torch.int64
        if name.startswith("leaf"):
            assert torch.equal(count, layer.routing.leaf_counts)
    assert torch.equal(counts["node_bias"], layer.routing.path_counts)
    assert torch.equal(counts["node_bias"], layer.routing.node_counts)  # hard routing decides on the path only


def test_a_side_that_is_not_taken_may_overflow():
    torch.manual_seed(0)
    layer = TreeFeedForward(4, depth=1, leaf_width=2, shared_base=False)
    x = torch.randn(8, 4)
    layer(x)
    taken = layer.routing.leaf[:1, 0]
    with torch.no_grad():
        layer.leaf_b2[0, 1 - taken] = float("inf")
    y = layer(x[:1])
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y, layer.eval()(x[:1]))


def test_evaluation_runs_the_path_alone_with_and_without_gradients():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += "fastff" in str(func)
            return func(*args, **(kwargs or {}))

    layer = TreeFeedForward(6, depth=4, leaf_width=2)
    counts = {}
    with use_backend("reference"):  # the compiled kernels are one operator whatever they follow
        for mode in ("train", "eval"):
            with Count() as count:
                getattr(layer, mode)()(torch.randn(3, 6))
            counts[mode] = count.calls
        with torch.no_grad(), Count() as count:
            layer(torch.randn(3, 6))
    assert 0 < counts["eval"] == count.calls < counts["train"]


def test_a_gated_leaf_is_the_gated_dense_layer():
    tree = TreeFeedForward(6, 5, depth=0, leaf_width=4, contributing=False, gated=True, activation="silu")
    dense = FeedForward(6, 5, width=4, gated=True, activation="silu")
    with torch.no_grad():
        for name in ("w1", "b1", "w2", "b2"):
            getattr(dense, name).copy_(getattr(tree, f"leaf_{name}")[0, 0])
    x = torch.randn(9, 6)
    torch.testing.assert_close(tree(x), dense(x))
    gate, up = torch.nn.functional.linear(x, dense.w1, dense.b1).chunk(2, dim=-1)
    torch.testing.assert_close(dense(x), torch.nn.functional.silu(gate) * up @ dense.w2 + dense.b2)
    assert tree.multiply_adds(training=False) == dense.multiply_adds(training=False) == 4 * (2 * 6 + 5)


def test_gated_leaves_are_refused_where_nodes_contribute():
    with pytest.raises(ValueError, match="gated leaves need contributing=False"):
        TreeFeedForward(6, depth=2, leaf_width=1, gated=True)
