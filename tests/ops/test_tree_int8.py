"""Trees in int8: the compiled kernel against the definition, the definition against float weights, bits, arguments."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastff.ops import (
    ACTIVATIONS,
    Int8Shape,
    Int8Tree,
    Leaves,
    instruction_set,
    quantise_experts,
    quantise_tree,
    tree_feedforward,
)
from fastff.ops import tree_int8 as operator
from fastff.ops import use_backend as backend

compiled = pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# I, O, K, D, S, W, leaf rows, leaf bias, R, master: all of the family, of odd sizes, with and without a projection.
SHAPES = [
    (33, 34, 2, 3, 2, 3, 2, True, None, 0),
    (1, 1, 1, 1, 1, 1, 1, True, None, 0),
    (63, 130, 1, 6, 1, 0, 0, False, None, 0),
    (1000, 63, 3, 5, 0, 2, 1, True, None, 0),
    (64, 64, 20, 4, 0, 1, 2, False, None, 0),
    (100, 768, 5, 4, 2, 1, 2, False, 32, 0),
    (7, 5, 3, 0, 0, 2, 1, True, None, 0),
    (768, 65, 17, 7, 0, 1, 2, False, 70, 0),
    (100, 70, 3, 2, 1, 1, 1, True, None, 5),
    (64, 130, 4, 5, 0, 1, 2, False, 16, 64),
    (33, 34, 2, 3, 0, 3, "gated", True, None, 0),
    (7, 5, 3, 0, 0, 2, "gated", False, 16, 3),
    (65, 130, 2, 3, 0, 21, "gated", True, None, 5),
    (100, 70, 2, 2, 1, 17, 2, True, None, 0),  # leaves so wide that tokens go through them together
    (65, 130, 1, 3, 0, 40, 1, False, None, 5),
    (384, 64, 3, 0, 0, 16, 2, True, 20, 3),
]
GATED, WIDE = SHAPES[-4], SHAPES[-3]
# I, O, heads, experts a head, keys of a half, features of a query, R, master.
EXPERTS = [(33, 34, 3, 2, 5, 6, None, 0), (100, 130, 2, 5, 7, 32, 16, 5), (64, 64, 20, 1, 1, 2, None, 64)]


def weights(I, O, K, D, S, W, leaf_S, bias, R, master) -> dict[str, Any]:
    N, L, features = 2**D - 1, 2**D, R or I

    def rows(*shape: int) -> Tensor:
        return torch.randn(shape) / shape[-1] ** 0.5

    leaves = None
    if W:
        w2 = rows(K, L, W, 2, O) if leaf_S == 2 else rows(K, L, W, O)
        H = 2 * W if leaf_S == "gated" else W
        leaves = Leaves(rows(K, L, H, features), 0.1 * torch.randn(K, L, H), w2, rows(K, L, O) if bias else None)
    return {
        "node_weight": rows(K, N, features),
        "node_bias": 0.1 * torch.randn(K, N),
        "node_out": rows(K, N, S, O) if S else None,
        "leaves": leaves,
        "projection": rows(R, I) if R else None,
        "master": Leaves(rows(master, I), torch.randn(master), rows(master, O)) if master else None,
    }


def experts(I, O, heads, k, n, F_, R, master) -> tuple[Int8Tree, Int8Shape]:
    features = R or I

    def rows(*shape: int) -> Tensor:
        return torch.randn(shape) / shape[-1] ** 0.5

    dense = Leaves(rows(master, I), torch.randn(master), rows(master, O)) if master else None
    own = Leaves(rows(n * n, 1, features), 0.1 * torch.randn(n * n, 1), rows(n * n, 1, O))
    projection = rows(R, I) if R else None
    return quantise_experts(rows(heads, F_, features), torch.randn(2, n, F_ // 2), k, own, projection, dense)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", EXPERTS, ids=str)
@pytest.mark.parametrize("T", [0, 1, 3, 65, 300])
def test_experts_that_product_keys_find(shape, dtype, T, poisoned):
    tree, sizes = experts(*shape)
    x = torch.randn(T, shape[0]).to(dtype)
    y, path = operator(x, tree, sizes)
    with backend("reference"):
        expected, way = operator(x, tree, sizes)
    assert y.dtype == dtype
    assert path.leaf.shape == (T, shape[2] * shape[3])
    assert path.logits.shape == (*path.leaf.shape, 1)
    if not T:
        return
    torch.testing.assert_close(path.logits.view(T, shape[2], -1).sum(-1), torch.ones(T, shape[2]))
    same = (path.leaf == way.leaf).all(-1) & torch.isclose(path.logits, way.logits, 1e-4, 1e-4).flatten(1).all(-1)
    assert same.float().mean() >= 0.9  # LayerNorm is summed in another order
    close = torch.isclose(y, expected, 1e-4 if dtype == torch.float32 else 8e-3, 1e-4).all(-1)
    assert close[same].float().mean() >= 0.9


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("T", [1, 3, 64, 65, 300])
def test_the_kernel_computes_the_definition(shape, dtype, T, poisoned):
    tree, sizes = quantise_tree(**weights(*shape))
    x = torch.randn(T, shape[0]).to(dtype)
    for activation in ("gelu", "identity"):
        y, path = operator(x, tree, sizes, activation=activation)
        with backend("reference"):
            expected, way = operator(x, tree, sizes, activation=activation)
        assert y.dtype == dtype
        assert path.leaf.dtype == torch.int64
        # LayerNorm is summed in another order, so now and then a value is rounded to the byte beside.
        same = (path.leaf == way.leaf).all(-1) & torch.isclose(path.logits, way.logits, 1e-5, 1e-5).flatten(1).all(-1)
        assert same.float().mean() >= (0.95 if shape[-2] else 1)
        close = torch.isclose(y, expected, 1e-5 if dtype == torch.float32 else 8e-3, 1e-5).all(-1)
        assert close[same].float().mean() >= (0.95 if shape[-2] else 1)


@compiled
def test_no_token_is_fine():
    tree, sizes = quantise_tree(**weights(*SHAPES[0]))
    for name in ("reference", "cpu"):
        with backend(name):
            y, path = operator(torch.empty(0, 33), tree, sizes)
        assert y.shape == (0, 34)
        assert path.logits.shape == (0, 2, 3)
        assert path.leaf.shape == (0, 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_comes_close_to_what_the_float_weights_compute(shape):
    given = weights(*shape)
    x = torch.randn(400, shape[0])
    y, path = operator(x, *quantise_tree(**given))
    projection, master = given.pop("projection"), given.pop("master")
    z = x if projection is None else F.layer_norm(x @ projection.T, projection.shape[:1])
    expected, way = tree_feedforward(z, **given, gradient="none")
    if master is not None:
        expected = expected + F.gelu(F.linear(x, master.w1, master.b1)) @ master.w2
    turned = (path.leaf != way.leaf).any(-1)  # a logit near 0 changed its sign: rare for each, so by their number
    assert turned.float().mean() < 0.03 * shape[2] * max(1, shape[3])
    error = (y - expected)[~turned].norm() / expected[~turned].norm()
    assert error < 0.03


def test_rows_keep_what_a_byte_can_hold():
    given = weights(*SHAPES[0])
    tree, sizes = quantise_tree(**given)
    rows = (tree.in_rows[: 2 * 7, :33].float() - 128) * tree.in_scale[: 2 * 7, None]
    step = given["node_weight"].abs().amax(-1) / 127
    assert ((rows.view(2, 7, 33) - given["node_weight"]).abs() <= 0.5001 * step.unsqueeze(-1)).all()
    assert (tree.in_rows[:, 33:] == 128).all()
    assert sizes == Int8Shape(2, 3, 2, 3, 2, 1, 34)
    assert len(tree.in_rows) == sizes.in_rows
    assert tree.out_rows.shape == (1, sizes.out_rows, 64)


def test_rows_of_zeros_and_tokens_of_zeros():
    given = weights(*SHAPES[0])
    zeros = {name: torch.zeros_like(t) for name, t in given.items() if isinstance(t, Tensor)}
    zeros["leaves"] = Leaves(*(torch.zeros_like(t) for t in given["leaves"]))
    y, path = operator(torch.randn(5, 33), *quantise_tree(**zeros))
    assert not y.any()
    assert not path.logits.any()
    y, _ = operator(torch.zeros(5, 33), *quantise_tree(**given))
    expected, _ = tree_feedforward(torch.zeros(5, 33), *[t for t in given.values() if t is not None], gradient="none")
    assert (y - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_shows(value):
    x = torch.randn(70, 33)
    x[1, 5] = value
    tree, sizes = quantise_tree(**weights(*SHAPES[0]))
    y, _ = operator(x, tree, sizes)
    assert y[1].isnan().all()
    assert torch.equal(y[2:], operator(x[2:], tree, sizes)[0])
    given = weights(*SHAPES[0])
    given["node_out"][0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="node_out must be finite"):
        quantise_tree(**given)


@compiled
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[5], SHAPES[7], GATED, WIDE, EXPERTS[1]], ids=str)
def test_bits_of_a_row_depend_on_nothing_but_the_row(shape):
    tree, sizes = experts(*shape) if shape in EXPERTS else quantise_tree(**weights(*shape))
    x = torch.randn(5000, shape[0])
    y, path = operator(x, tree, sizes)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for part in (slice(0, 1), slice(4999, 5000), slice(7, 900), torch.randperm(5000)):
                found, way = operator(x[part], tree, sizes)
                assert torch.equal(found, y[part])
                assert torch.equal(way.leaf, path.leaf[part])
                assert torch.equal(way.logits, path.logits[part])
    finally:
        torch.set_num_threads(before)


@compiled
def test_tokens_need_not_be_contiguous():
    tree, sizes = quantise_tree(**weights(*SHAPES[0]))
    x = torch.randn(33, 70).T
    assert torch.equal(operator(x, tree, sizes)[0], operator(x.contiguous(), tree, sizes)[0])


@compiled
def test_the_operator_is_a_good_one():
    for tree, sizes in (quantise_tree(**weights(*SHAPES[5])), experts(*EXPERTS[1])):
        arguments = (torch.randn(9, 100), tree.tensors, [int(n) for n in sizes], 1)
        torch.library.opcheck(torch.ops.fastff.tree_int8, arguments)


def test_a_gradient_is_refused_where_it_is_asked_for():
    x = torch.randn(4, 33, requires_grad=True)
    y, _ = operator(x, *quantise_tree(**weights(*SHAPES[0])))
    with pytest.raises(RuntimeError, match="in int8 has no gradients"):
        y.sum().backward()


@compiled
def test_what_does_not_fit_is_named():
    tree, sizes = experts(*EXPERTS[1])
    x = torch.randn(3, 100)
    for name in Int8Tree._fields:
        wrong = getattr(tree, name)
        with pytest.raises(RuntimeError, match=f"{name} must be of shape"):
            operator(x, tree._replace(**{name: wrong[:-1]}), sizes)
        other = torch.float32 if wrong.dtype == torch.uint8 else torch.float64
        with pytest.raises(RuntimeError, match=f"{name} must be"):
            operator(x, tree._replace(**{name: wrong.to(other)}), sizes)
    for name, value in {"trees": 7, "keys": 0, "key_features": 31, "depth": 1, "leaf_bias": 1}.items():
        with pytest.raises(RuntimeError, match=name):
            operator(x, tree, sizes._replace(**{name: value}))
    tree, sizes = quantise_tree(**weights(*SHAPES[5]))
    for name, value in {
        "trees": 0,
        "depth": 31,
        "sides": 3,
        "leaf_sides": 3,
        "out_features": 0,
        "rank": -1,
        "master": -1,
    }.items():
        with pytest.raises(RuntimeError, match=f"{name} must be from"):
            operator(x, tree, sizes._replace(**{name: value}))
    with pytest.raises(RuntimeError, match="dense_rows must be of shape"):
        operator(torch.randn(3, 200), tree, sizes)
    with pytest.raises(RuntimeError, match="weights must be 9 tensors, got 5"):
        operator(x, Int8Tree(*tree[:5]), sizes)
    with pytest.raises(ValueError, match=f"activation must be one of {', '.join(ACTIVATIONS)}"):
        operator(x, tree, sizes, activation="sine")
