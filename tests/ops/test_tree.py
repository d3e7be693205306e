"""The tree family against oracles that evaluate every node and every leaf with straight-through path weights."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastff.ops import GRADIENTS, Leaves, activate, tree_feedforward
from fastff.ops.tree.reference import contribute

F64 = torch.float64


class Tree(NamedTuple):
    x: Tensor
    node_weight: Tensor
    node_bias: Tensor
    node_out: Tensor | None
    leaves: Leaves | None

    def inputs(self) -> list[Tensor]:
        tensors = [*self[:3], *([] if self.node_out is None else [self.node_out]), *(self.leaves or ())]
        return [t for t in tensors if t.requires_grad]

    def run(self, gradient: str, activation: str = "gelu") -> Tensor:
        return tree_feedforward(*self, activation=activation, gradient=gradient)[0]


def make_tree(
    T: int = 7,
    I: int = 5,
    O: int = 3,
    K: int = 2,
    D: int = 3,
    W: int = 2,
    S: int = 1,
    leaf_rows: int = 1,
    parts: str = "both",
) -> Tree:
    """`parts`: "both", "nodes" or "leaves" put something out; S, leaf_rows output rows a node and a leaf's neuron."""
    N, L = 2**D - 1, 2**D

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, requires_grad=True)

    node_out = None if parts == "leaves" else random(K, N, S, O)
    leaves = None
    if parts != "nodes":
        w2 = random(K, L, W, 2, O) if leaf_rows == 2 else random(K, L, W, O)
        leaves = Leaves(random(K, L, W, I), random(K, L, W), w2, random(K, L, O))
    return Tree(random(T, I), random(K, N, I), random(K, N), node_out, leaves)


def exact_sides(p: Tensor, hard: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (left, right) of a path weight: hard + p - stop_gradient(p) of the side."""
    step = p - p.detach()
    return (1 - hard) - step, hard + step


def chosen_sides(p: Tensor, hard: Tensor) -> tuple[Tensor, Tensor]:
    """As `exact_sides`, but the side not taken weighs 0 without a gradient."""
    step = p - p.detach()
    return (1 - hard) * (1 - step), hard * (1 + step)


def plain_sides(p: Tensor, hard: Tensor) -> tuple[Tensor, Tensor]:
    return 1 - hard, hard


SIDES = {"exact": exact_sides, "chosen": chosen_sides, "none": plain_sides}


def oracle(tree: Tree, activation: str, sides: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    x, node_weight, node_bias, node_out, leaves = tree
    K, N = node_bias.shape
    y = 0
    for k in range(K):
        z = x @ node_weight[k].T + node_bias[k]
        left, right = sides(torch.sigmoid(z), (z >= 0).to(F64))
        reach = [torch.ones(len(x), dtype=F64)]
        for child in range(1, 2 * N + 1):
            parent = (child - 1) // 2
            reach.append(reach[parent] * (right if child % 2 == 0 else left)[:, parent])
        for n in range(N if node_out is not None else 0):
            out = node_out[k, n]
            if len(out) == 1:
                contribution = activate(z[:, n, None], activation) * out[0]
            else:
                contribution = torch.relu(-z[:, n, None]) * out[0] + torch.relu(z[:, n, None]) * out[1]
            y = y + reach[n][:, None] * contribution
        for leaf in range(N + 1 if leaves is not None else 0):
            w1, b1, w2, b2 = (t[k, leaf] for t in leaves)
            z = x @ w1.T + b1
            if w2.dim() == 2:
                out = activate(z, activation) @ w2
            else:
                out = torch.relu(-z) @ w2[:, 0] + torch.relu(z) @ w2[:, 1]
            y = y + reach[N + leaf][:, None] * (out + b2)
    return y


def gradients(y: Tensor, tree: Tree, u: Tensor) -> list[Tensor]:
    found = torch.autograd.grad((y * u).sum(), tree.inputs(), allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tree.inputs(), strict=True)]


def assert_equals_oracle(tree: Tree, gradient: str, activation: str = "gelu") -> None:
    y, expected = tree.run(gradient, activation), oracle(tree, activation, SIDES[gradient])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    u = torch.randn_like(y)
    if y.requires_grad:
        for g, e in zip(gradients(y, tree, u), gradients(expected, tree, u), strict=True):
            torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gradient", sorted(SIDES))
@pytest.mark.parametrize(("S", "leaf_rows"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("D", range(5))
def test_output_and_every_gradient_equal_the_oracle(D, K, S, leaf_rows, gradient):
    assert_equals_oracle(make_tree(K=K, D=D, S=S, leaf_rows=leaf_rows), gradient)


@pytest.mark.parametrize("gradient", sorted(SIDES))
@pytest.mark.parametrize("parts", ["nodes", "leaves"])
def test_trees_of_nodes_or_of_leaves_alone_equal_the_oracle(parts, gradient):
    assert_equals_oracle(make_tree(T=20, parts=parts), gradient)
    assert_equals_oracle(make_tree(T=20, D=1, parts=parts), gradient)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.fixed_dictionaries(
        {
            "T": st.integers(0, 5),
            "I": st.integers(1, 4),
            "O": st.integers(1, 3),
            "K": st.integers(1, 3),
            "D": st.integers(1, 4),
            "W": st.integers(1, 3),
            "S": st.integers(1, 2),
            "leaf_rows": st.integers(1, 2),
            "parts": st.sampled_from(["both", "nodes", "leaves"]),
        }
    ),
    gradient=st.sampled_from(sorted(SIDES)),
    activation=st.sampled_from(["relu", "gelu", "identity"]),
    seed=st.integers(0, 2**31),
)
def test_any_small_shape_equals_the_oracle(sizes, gradient, activation, seed):
    torch.manual_seed(seed)
    assert_equals_oracle(make_tree(**sizes), gradient, activation)


@pytest.mark.parametrize(("S", "parts"), [(1, "both"), (2, "both"), (1, "nodes"), (1, "leaves")])
def test_the_mean_of_sampled_gradients_is_the_exact_one(S, parts):
    tree = make_tree(T=3, I=2, O=2, K=2, D=3, W=1, S=S, parts=parts)
    u = torch.randn(3, 2, dtype=F64)
    exact = torch.cat([g.flatten() for g in gradients(tree.run("exact"), tree, u)])
    draws = torch.stack([torch.cat([g.flatten() for g in gradients(tree.run("sampled"), tree, u)]) for _ in range(400)])
    deviation = draws.std(0)
    varies = deviation > 1e-9
    assert varies.sum() > 10
    score = (draws.mean(0) - exact)[varies] / (deviation[varies] / 400**0.5)
    assert score.abs().max() < 5
    assert score.square().mean() < 3  # 1 for an unbiased estimate, with correlated entries
    torch.testing.assert_close(draws[0][~varies], exact[~varies], rtol=1e-9, atol=1e-9)


def test_at_depth_one_the_sampled_gradient_is_exact_in_every_draw():
    tree = make_tree(D=1)
    u = torch.randn(7, 3, dtype=F64)
    for g, e in zip(gradients(tree.run("sampled"), tree, u), gradients(tree.run("exact"), tree, u), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_only_what_lies_on_a_path_gets_a_gradient(gradient):
    tree = make_tree(T=2, K=2, D=4, S=2)
    y, path = tree_feedforward(*tree, gradient=gradient)
    y.sum().backward()
    for k in range(2):
        on_path = set(path.leaf[:, k].tolist())
        for t in tree.leaves[1:]:
            touched = t.grad[k].flatten(1).abs().sum(1).nonzero().flatten().tolist()
            assert set(touched) == on_path
        nodes = set(path.nodes[:, k].flatten().tolist())
        for t in (tree.node_weight, tree.node_out):
            assert set(t.grad[k].flatten(1).abs().sum(1).nonzero().flatten().tolist()) == nodes


def test_path_ends_in_the_leaf_below_its_last_decision():
    tree = make_tree(T=50, K=2, D=3)
    _, path = tree_feedforward(*tree)
    every = torch.einsum("ti,kni->tkn", tree.x, tree.node_weight) + tree.node_bias
    below = torch.zeros(50, 2, dtype=torch.int64)
    for level in range(3):
        assert torch.equal(path.nodes[..., level], below)
        logits = every.gather(-1, below.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(path.logits[..., level], logits, rtol=1e-12, atol=1e-12)
        below = 2 * below + 1 + (logits >= 0).long()
    assert torch.equal(path.leaf, below - 7)
    assert len(path.leaf.unique()) > 4


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_all_gradients_have_the_same_value_and_no_gradient_mode_too(gradient):
    tree = make_tree(S=2)
    expected = tree.run("none")
    torch.testing.assert_close(tree.run(gradient), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(tree.run(gradient), tree.run("none"))


def test_without_a_gradient_no_other_side_is_evaluated(watch):
    tree = make_tree(T=4, D=6, K=1, W=1, S=2)
    other_sides = (4, 1, 1 + 2 + 3 + 4 + 5)  # nodes below the siblings of a path of 6
    with watch() as training:
        tree.run("exact")
    with torch.no_grad(), watch() as inference:
        tree.run("exact")
    assert other_sides in training.shapes
    assert other_sides not in inference.shapes
    with watch() as chosen:
        tree.run("chosen")
    assert other_sides not in chosen.shapes


def test_frozen_decisions_still_let_leaves_and_outputs_learn():
    tree = make_tree(S=2)
    frozen = tree._replace(x=tree.x.detach(), node_weight=tree.node_weight.detach(), node_bias=tree.node_bias.detach())
    assert_equals_oracle(frozen, "exact")


def test_contribute_takes_the_row_of_the_side():
    logits, nodes = torch.tensor([[[2.0, -3.0]]]), torch.tensor([[[0, 1]]])
    rows = torch.tensor([[[[1.0], [10.0]], [[100.0], [1000.0]], [[0.0], [0.0]]]])
    assert contribute(logits, nodes, rows, "gelu", None).tolist() == [[2 * 10 + 3 * 100]]
    assert contribute(logits, nodes, rows, "gelu", torch.tensor([[[0.5, 2.0]]])).tolist() == [[10 + 600]]
    assert contribute(logits, nodes, rows[:, :, :1], "identity", None).tolist() == [[2 - 300]]


def test_bad_arguments_raise():
    tree = make_tree()
    with pytest.raises(ValueError, match="gradient must be one of none, chosen, sampled, exact, got 'half'"):
        tree.run("half")
    with pytest.raises(ValueError, match="node_out or leaves"):
        tree_feedforward(*tree[:3])
