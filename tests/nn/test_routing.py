"""Diagnostics and auxiliary losses on small cases worked by hand."""

import math

import pytest
import torch
from torch import nn

from fastff.nn import FFF, FeedForward, MoE, TreeFeedForward, TreeRouting, UltraFFF, auxiliary_loss


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def entropy(*p: float) -> float:
    return sum(-q * math.log(q) - (1 - q) * math.log(1 - q) for q in p)


def hard_routing(logits: list[list[float]], grad: bool = False) -> TreeRouting:
    """One tree, hard: each row the logits of a token's path."""
    z = torch.tensor(logits).unsqueeze(1).requires_grad_(grad)
    T, _, D = z.shape
    node = torch.zeros(T, 1, dtype=torch.int64)
    for level in range(D):
        node = 2 * node + 1 + (z[..., level] >= 0).long()
    return TreeRouting(z, node - (2**D - 1), 2**D - 1, 2**D, soft=False)


def soft_routing(p: list[list[float]]) -> TreeRouting:
    """One tree of depth 2, soft: each row the three decisions of a token."""
    z = torch.logit(torch.tensor(p)).unsqueeze(1)
    right = z[:, 0] >= 0
    leaf = torch.where(right[:, 0], 2 + right[:, 2].long(), right[:, 1].long())
    return TreeRouting(z, leaf.unsqueeze(1), 3, 4, soft=True)


HARD = [[logit(0.9), logit(0.6)], [logit(0.7), logit(0.2)], [logit(0.1), logit(0.8)]]  # leaves 3, 2, 1


def test_counts_of_a_hard_tree():
    routing = hard_routing(HARD)
    assert routing.leaf.tolist() == [[3], [2], [1]]
    assert routing.nodes.tolist() == [[[0, 2]], [[0, 2]], [[0, 1]]]
    assert routing.leaf_counts.tolist() == [[0, 1, 1, 1]]
    assert routing.node_counts.tolist() == routing.path_counts.tolist() == [[3, 1, 2]]
    torch.testing.assert_close(routing.leaf_usage, torch.tensor([[0, 1, 1, 1]]) / 3)
    torch.testing.assert_close(routing.effective_leaves, torch.tensor([3.0]))
    expected = torch.tensor([[entropy(0.9, 0.7, 0.1) / 3, entropy(0.8), entropy(0.6, 0.2) / 2]])
    torch.testing.assert_close(routing.node_entropy, expected)


def test_a_node_that_decided_nothing_has_no_entropy():
    routing = hard_routing(HARD[:2])
    assert routing.node_entropy.isnan().tolist() == [[False, True, False]]
    assert routing.path_counts.tolist() == [[2, 0, 2]]


def test_counts_of_a_soft_tree():
    routing = soft_routing([[0.9, 0.2, 0.6], [0.3, 0.8, 0.1]])
    assert routing.leaf.tolist() == [[3], [1]]
    assert routing.nodes.tolist() == [[[0, 1, 2]]] * 2
    assert routing.node_counts.tolist() == [[2, 2, 2]]  # every node is evaluated for every token
    assert routing.path_counts.tolist() == [[2, 1, 1]]
    torch.testing.assert_close(
        routing.node_entropy, torch.tensor([[entropy(0.9, 0.3), entropy(0.2, 0.8), entropy(0.6, 0.1)]]) / 2
    )


def test_effective_leaves_of_uneven_usage():
    routing = hard_routing([[1.0], [1.0], [1.0], [-1.0]])
    assert routing.effective_leaves.item() == pytest.approx(math.exp(entropy(0.25)), rel=1e-6)
    assert hard_routing([[1.0], [2.0]]).effective_leaves.item() == pytest.approx(1)


def test_hardening_is_the_mean_entropy_over_samples_and_nodes():
    hard, soft = hard_routing(HARD), soft_routing([[0.9, 0.2, 0.6], [0.3, 0.8, 0.1]])
    assert hard.losses()["hardening"].item() == pytest.approx(entropy(0.9, 0.6, 0.7, 0.2, 0.1, 0.8) / 6, rel=1e-5)
    assert soft.losses()["hardening"].item() == pytest.approx(entropy(0.9, 0.2, 0.6, 0.3, 0.8, 0.1) / 6, rel=1e-5)


def test_hardening_stays_finite_with_its_gradient_at_extreme_logits():
    routing = hard_routing([[1e4, -1e4], [0.0, 80.0]], grad=True)
    loss = routing.losses()["hardening"]
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) / 4, rel=1e-5)
    assert routing.logits.grad.isfinite().all()


def test_balance_of_a_soft_tree_is_leaves_times_the_sum_of_shares_and_mean_probabilities():
    routing = soft_routing([[0.9, 0.2, 0.6], [0.3, 0.8, 0.1], [0.8, 0.5, 0.7]])  # leaves 3, 1, 3
    mean_p = [
        (0.1 * 0.8 + 0.7 * 0.2 + 0.2 * 0.5) / 3,
        (0.1 * 0.2 + 0.7 * 0.8 + 0.2 * 0.5) / 3,
        (0.9 * 0.4 + 0.3 * 0.9 + 0.8 * 0.3) / 3,
        (0.9 * 0.6 + 0.3 * 0.1 + 0.8 * 0.7) / 3,
    ]
    assert routing.losses()["balance"].item() == pytest.approx(4 * (mean_p[1] / 3 + 2 * mean_p[3] / 3), rel=1e-5)


def test_balance_of_a_hard_tree_is_the_mean_over_levels():
    root = 2 * ((0.9 + 0.7 + 0.1) / 3 * 2 / 3 + (0.1 + 0.3 + 0.9) / 3 / 3)
    below = 4 * ((0.6 + 0.2) / 3 / 3 + (0.4 + 0.8) / 3 / 3 + 0.8 / 3 / 3)
    assert hard_routing(HARD).losses()["balance"].item() == pytest.approx((root + below) / 2, rel=1e-5)


def test_balance_of_a_hard_tree_is_one_when_even_and_larger_when_collapsed():
    even = hard_routing([[-5.0, -1.0], [-0.1, 2.0], [3.0, -2.0], [0.3, 0.2]])
    assert even.losses()["balance"].item() == pytest.approx(1, rel=1e-6)
    collapsed = hard_routing([[9.0, 9.0]] * 4)
    assert collapsed.losses()["balance"].item() == pytest.approx((2 + 4) / 2, rel=1e-3)


def test_balance_pushes_logits_away_from_the_crowded_side():
    for sign in (1, -1):  # three of four tokens go right, then left; a step down the gradient moves each of them back
        routing = hard_routing([[sign * 1.0], [sign * 0.5], [sign * 2.0], [sign * -1.0]], grad=True)
        routing.losses()["balance"].backward()
        assert (sign * routing.logits.grad > 0).all()


def run(layer: nn.Module, tokens: int = 20) -> nn.Module:
    layer(torch.randn(tokens, 6))
    return layer


def test_balance_of_many_trees_is_their_mean():
    layer = run(TreeFeedForward(6, depth=2, leaf_width=1, trees=3))
    r = layer.routing
    each = [TreeRouting(r.logits[:, k : k + 1], r.leaf[:, k : k + 1], 3, 4, soft=False) for k in range(3)]
    for name in ("balance", "hardening"):
        expected = sum(e.losses()[name] for e in each) / 3
        torch.testing.assert_close(auxiliary_loss(layer, **{name: 1.0}), expected)


def test_auxiliary_loss_weighs_and_sums_over_layers():
    model = nn.Sequential(FFF(6, depth=2, leaf_width=1), FeedForward(6, width=2), UltraFFF(6, depth=2), nn.ReLU())
    model.append(MoE(6, experts=3, expert_width=2))
    run(model)
    losses = [layer.routing.losses() for layer in (model[0], model[2], model[4])]
    expected = 0.5 * (losses[0]["hardening"] + losses[1]["hardening"]) + 2 * (
        losses[0]["balance"] + losses[1]["balance"]
    )
    expected = expected + 3 * losses[2]["importance"] + 4 * losses[2]["load"]
    actual = auxiliary_loss(model, hardening=0.5, balance=2, importance=3, load=4)
    torch.testing.assert_close(actual, expected)
    assert actual.dtype == torch.float32
    actual.backward()
    assert model[0].node_weight.grad.abs().sum() > 0
    assert model[0].leaf_w1.grad is not None  # through the input of the layers behind it


def test_auxiliary_loss_is_zero_without_weights_layers_or_a_forward():
    model = run(FFF(6, depth=2, leaf_width=1))
    for loss in (
        auxiliary_loss(model),
        auxiliary_loss(nn.Linear(2, 2), balance=1),
        auxiliary_loss(nn.ReLU(), balance=1),
        auxiliary_loss(FFF(6, depth=2, leaf_width=1), balance=1),
        auxiliary_loss(run(FFF(6, depth=0, leaf_width=1)), balance=1, hardening=1),
    ):
        assert loss.shape == ()
        assert loss.item() == 0
    auxiliary_loss(run(UltraFFF(6, depth=0)), balance=1, hardening=1).backward()  # in the graph all the same


@pytest.mark.parametrize("name", ["hardening", "balance", "importance", "load"])
@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_a_weight_that_is_negative_or_no_number_raises(name, weight):
    with pytest.raises(ValueError, match=f"{name} must be a number of at least 0"):
        auxiliary_loss(nn.ReLU(), **{name: weight})


@pytest.mark.parametrize(
    "layer",
    [
        FFF(6, depth=2, leaf_width=1),
        UltraFFF(6, depth=2),
        TreeFeedForward(6, depth=2, leaf_width=1),
        MoE(6, experts=3, expert_width=1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_routing_before_any_forward_raises(layer):
    assert not layer.has_routing
    with pytest.raises(RuntimeError, match=f"{type(layer).__name__} has no routing yet"):
        _ = layer.routing


@pytest.mark.parametrize("harden", [True, False])
def test_block_counts_of_fff_follow_the_hard_path(harden):
    layer = FFF(1, depth=2, leaf_width=1, master_width=2, harden=harden)
    with torch.no_grad():
        layer.node_weight.fill_(1.0)
        layer.node_bias.copy_(torch.tensor([0.0, 1.0, -1.0]))  # leaves: below -1, to 0, to 1, above
    layer(torch.tensor([[-3.0], [-2.0], [-0.5], [0.5], [0.0], [5.0]]))
    counts = layer.block_counts()
    assert {name: c.tolist() for name, c in counts.items()} == {
        **{name: [6, 3, 3] for name in ("node_weight", "node_bias")},
        **{name: [2, 1, 2, 1] for name in ("leaf_w1", "leaf_b1", "leaf_w2", "leaf_b2")},
    }
