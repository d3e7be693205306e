"""Trees that grow: the function is kept, level by level, and the optimiser's moments go along."""

import pytest
import torch
from torch import nn

import fastff
from fastff import TreeFeedForward, grow, start_growth
from fastff.nn.tree_feedforward import LEAF_PARAMETERS, NODE_PARAMETERS
from fastff.optim import RowwiseAdamW

F64 = torch.float64


def due(levels: int, depth: int = 3) -> float:
    """The share of the growth at which so many levels decide, with something for rounding."""
    return (levels / depth) ** 2 + 1e-9


def growing(levels: int = 0, **options) -> TreeFeedForward:
    torch.manual_seed(0)
    layer = TreeFeedForward(6, 5, **({"depth": 3, "leaf_width": 2, "dtype": F64} | options))
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    return start_growth(layer, due(levels))


OPTIONS = [{}, {"trees": 2}, {"two_sided": False}, {"shared_base": False}]
LEAVES_ALONE = {"trees": 2, "rank": 4, "contributing": False}


@pytest.mark.parametrize("options", [*OPTIONS, LEAVES_ALONE, LEAVES_ALONE | {"rank": None}], ids=str)
def test_the_function_stays_the_same_while_leaves_double(options):
    layer, x = growing(**options), torch.randn(200, 6, dtype=F64)
    before = layer(x)
    for level in range(3):
        assert layer.levels == level
        assert layer.routing.leaves_per_tree == 2**level
        grow(layer, due(level + 1))
        torch.testing.assert_close(layer(x), before)
        assert layer.routing.leaf_counts.shape[1] == 2 ** (level + 1)
    grow(layer, 2.0)
    assert layer.levels == 3
    torch.testing.assert_close(layer(x), before)
    with torch.no_grad():  # and now every leaf is one of its own
        layer.leaf_b2.normal_()
    assert not torch.isclose(layer(x), before).any()


@pytest.mark.parametrize("options", [*OPTIONS, {"rank": 4}], ids=str)
def test_before_it_grows_a_tree_is_a_dense_layer_of_its_inference_width(options):
    layer, x = growing(**options), torch.randn(50, 6, dtype=F64)
    dense = TreeFeedForward(6, 5, depth=0, leaf_width=layer.inference_width // layer.trees, dtype=F64, **options)
    base = layer.shared_base
    with torch.no_grad():
        for w, node in (("w1", "node_weight"), ("b1", "node_bias"), ("w2", "node_out")):
            row = getattr(dense, f"leaf_{w}")
            row[:, 0, :2] = getattr(layer, f"leaf_{w}")[:, 0] + (getattr(layer, f"base_{w}")[:, 0] if base else 0)
            for level in range(3):  # the nodes, of which each level has its first row in use
                row[:, 0, 2 + level] = getattr(layer, node)[:, 2**level - 1].view_as(row[:, 0, 0])
        dense.leaf_b2.copy_(layer.leaf_b2[:, :1] + (layer.base_b2 if base else 0))
        if layer.rank:
            dense.projection.copy_(layer.projection)
    torch.testing.assert_close(layer(x), dense(x))


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_gradients_end_where_the_rows_in_use_do(levels):
    layer, x = growing(levels), torch.randn(50, 6, dtype=F64)
    (layer(x).square().sum() + fastff.auxiliary_loss(layer, balance=1.0)).backward()
    for name, counts in layer.block_counts().items():
        grad = getattr(layer, name).grad.flatten(2) if name != "node_bias" else getattr(layer, name).grad.unsqueeze(2)
        assert torch.equal(grad.ne(0).any(-1), counts > 0), name
        used = {"node": sum(2 ** min(level, levels) for level in range(3)), "leaf": 2**levels}[name[:4]]
        assert (counts > 0).sum() == used


def test_moments_go_to_both_children():
    layer, x = growing(levels=1), torch.randn(80, 6, dtype=F64)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(x).square().sum().backward()
    optimizer.step()
    before = {name: optimizer.state[getattr(layer, name)]["exp_avg"].clone() for name in layer.parameter_names}
    grow(layer, due(2), optimizer)
    after = {name: optimizer.state[getattr(layer, name)]["exp_avg"] for name in layer.parameter_names}
    for name in LEAF_PARAMETERS:
        for leaf in range(4):
            assert torch.equal(after[name][:, leaf], before[name][:, leaf // 2])
    for name in NODE_PARAMETERS:
        assert torch.equal(after[name][:, :3], before[name][:, :3])  # both levels that decide
        for node in range(4):
            assert torch.equal(after[name][:, 3 + node], before[name][:, 3 + node // 2])
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("base"))


def test_every_tree_of_a_model_grows():
    torch.manual_seed(0)
    model = nn.Sequential(
        TreeFeedForward(6, depth=2, leaf_width=1), nn.ReLU(), TreeFeedForward(6, depth=1, leaf_width=1)
    )
    start_growth(model)
    x = torch.randn(300, 6)
    before = model(x)
    levels = []
    for share in (0.0, 0.24, 0.26, 0.99, 1.0):
        grow(model, share)
        levels.append([model[0].levels, model[2].levels])
    assert levels == [[0, 0], [0, 0], [1, 0], [1, 0], [2, 1]]
    torch.testing.assert_close(model(x), before)


def test_sparse_gradients_begin_with_the_whole_tree():
    layer = growing(levels=2, sparse=True, dtype=torch.float32)
    optimizer = RowwiseAdamW(layer.parameters(), lr=0.01, model=layer)
    x = torch.randn(50, 6)
    for _ in range(3):
        optimizer.zero_grad()
        before = layer(x).square().mean()
        before.backward()
        optimizer.step()
        assert layer(x).square().mean() < before
        grow(layer, 1.0, optimizer)


@pytest.mark.parametrize("call", [grow, start_growth])
def test_the_share_must_be_a_number_of_0_or_more(call):
    for share in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"share must be 0 or more, got {share}"):
            call(growing(), share)


def test_a_tree_that_was_not_to_grow_stays_whole():
    layer = TreeFeedForward(6, 5, depth=3, leaf_width=2)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    for share in (0.0, 0.5, 1.0):
        grow(layer, share)
    assert layer.levels == 3
    assert all(torch.equal(before[name], t) for name, t in layer.state_dict().items())


def test_levels_that_are_late_come_at_once():
    layer, x = growing(), torch.randn(50, 6, dtype=F64)
    before = layer(x)
    grow(layer, 1.0)
    assert layer.levels == 3
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_what_is_saved_midway_is_the_whole_tree_of_the_same_function(levels):
    layer, x = growing(levels), torch.randn(90, 6, dtype=F64)
    state = layer.state_dict()
    whole = TreeFeedForward(6, 5, depth=3, leaf_width=2, dtype=F64)
    whole.load_state_dict(state)
    torch.testing.assert_close(whole(x), layer(x))
    again = start_growth(whole, due(levels))  # and back, as a run that is resumed does
    torch.testing.assert_close(again(x), layer(x))
    assert again.levels == levels
    for name, level, first in layer.rows_by_level():
        rows = slice(first, first + 2 ** min(level, levels))
        assert torch.equal(getattr(again, name)[:, rows], getattr(layer, name)[:, rows])
