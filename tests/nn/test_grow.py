"""Trees that grow: the function is kept, level by level, and the optimiser's moments go along."""

import pytest
import torch
from torch import nn

import fastff
from fastff import TreeFeedForward, grow, start_growth
from fastff.nn.tree_feedforward import LEAF_PARAMETERS

F64 = torch.float64


def growing(levels: int = 0, **options) -> TreeFeedForward:
    torch.manual_seed(0)
    layer = TreeFeedForward(6, 5, **({"depth": 3, "leaf_width": 2, "dtype": F64} | options))
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    return start_growth(layer, levels)


@pytest.mark.parametrize("options", [{}, {"trees": 2}, {"two_sided": False}, {"shared_base": False}], ids=str)
def test_the_function_stays_the_same_while_leaves_double(options):
    layer, x = growing(**options), torch.randn(200, 6, dtype=F64)
    before = layer(x)
    for level in range(3):
        assert layer.levels == level
        assert layer.routing.leaves_per_tree == 2**level
        more = grow(layer, [x])
        torch.testing.assert_close(layer(x), before)
        assert more == (level < 2)
        used = layer.routing.leaf_counts[0]
        assert len(used) == 2 ** (level + 1)
        assert (used - used.float().mean()).abs().max() <= 1 + 2**level  # each node halved what came to it
    assert not grow(layer, [x])
    torch.testing.assert_close(layer(x), before)


def test_a_tree_that_has_not_grown_is_the_smaller_tree_and_its_gradients_end_there():
    layer, x = growing(levels=1), torch.randn(50, 6, dtype=F64)
    small = TreeFeedForward(6, 5, depth=1, leaf_width=2, dtype=F64)
    with torch.no_grad():
        for (name, p), full in zip(small.named_parameters(), layer.parameters(), strict=True):
            p.copy_(full if name.startswith("base") else full[:, : p.shape[1]])
    y = layer(x)
    torch.testing.assert_close(y, small(x))
    (y.sum() + fastff.auxiliary_loss(layer, balance=1.0)).backward()
    (small(x).sum() + fastff.auxiliary_loss(small, balance=1.0)).backward()
    for (name, p), full in zip(small.named_parameters(), layer.parameters(), strict=True):
        rows = p.shape[1]
        torch.testing.assert_close(full.grad[:, :rows], p.grad, msg=name)
        assert torch.count_nonzero(full.grad[:, rows:]) == 0
    assert all(count.shape == getattr(layer, name).shape[:2] for name, count in layer.block_counts().items())


def test_moments_go_to_both_children_and_new_nodes_have_none():
    layer, x = growing(levels=1), torch.randn(80, 6, dtype=F64)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(x).square().sum().backward()
    optimizer.step()
    before = {name: optimizer.state[getattr(layer, name)]["exp_avg"].clone() for name in LEAF_PARAMETERS}
    for p in (layer.node_weight, layer.node_out):
        optimizer.state[p]["exp_avg"].fill_(7.0)
    grow(layer, [x], optimizer)
    for name, old in before.items():
        moments = optimizer.state[getattr(layer, name)]["exp_avg"]
        for leaf in range(4):
            assert torch.equal(moments[:, leaf], old[:, leaf // 2])
    for p in (layer.node_weight, layer.node_out):
        moments = optimizer.state[p]["exp_avg"]
        assert (moments[:, 0] == 7.0).all()
        assert torch.count_nonzero(moments[:, 1:3]) == 0


def test_every_tree_of_a_model_grows_on_what_comes_to_it():
    torch.manual_seed(0)
    model = nn.Sequential(
        TreeFeedForward(6, depth=2, leaf_width=1), nn.ReLU(), TreeFeedForward(6, depth=1, leaf_width=1)
    )
    start_growth(model)
    x = torch.randn(300, 6)
    before = model(x)
    assert grow(model, [x])
    assert [model[0].levels, model[2].levels] == [1, 1]
    assert not grow(model, [x])
    assert [model[0].levels, model[2].levels] == [2, 1]
    torch.testing.assert_close(model(x), before)


def test_levels_must_be_a_whole_number_and_stop_at_the_depth():
    assert growing(levels=9).levels == 3
    with pytest.raises(ValueError, match="levels must be"):
        start_growth(growing(), -1)
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        grow(growing(), [])


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_what_is_saved_midway_is_the_whole_tree_of_the_same_function(levels):
    layer, x = growing(levels), torch.randn(90, 6, dtype=F64)
    state = layer.state_dict()
    whole = TreeFeedForward(6, 5, depth=3, leaf_width=2, dtype=F64)
    whole.load_state_dict(state)
    torch.testing.assert_close(whole(x), layer(x))
    again = start_growth(whole, levels)  # and back, as a run that is resumed does
    torch.testing.assert_close(again(x), layer(x))
    assert again.levels == levels
    for name in LEAF_PARAMETERS:
        assert torch.equal(getattr(again, name)[:, : 2**levels], getattr(layer, name)[:, : 2**levels])
