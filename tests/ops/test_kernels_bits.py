"""The compiled operators give the same bits whatever lies around a row, and however many threads there are."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastff.ops import GRADIENTS, Leaves, indexed_feedforward, instruction_set, tree_feedforward

pytestmark = pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# T, I, O, K, D, W, S: with and without sorting (more than 6 levels and 256 tokens), several trees for few tokens at a
# time and for all or 4,096 of them, with odd ends of rows; leaves of which tokens share output rows; and in 16 bits
# with output rows copied a few columns at a time, of all trees (4,200 tokens) or one (2,900).
TREES = [
    (70, 33, 34, 1, 4, 3, 2),
    (600, 16, 9, 1, 9, 1, 1),
    (600, 64, 64, 3, 7, 0, 1),
    (530, 5, 130, 2, 8, 2, 2),
    (257, 200, 3, 1, 0, 5, 0),
    (300, 768, 768, 1, 12, 0, 1),
    (4200, 9, 7, 2, 9, 1, 2),
    (600, 20, 130, 2, 4, 9, 2),
    (2900, 6, 70, 3, 9, 3, 2),
]


def tree_rows(x: Tensor, weights: list[Any]) -> list[Tensor]:
    y, path = tree_feedforward(x, *weights)
    return [y, path.logits, path.leaf]


def assert_rows(found: list[Tensor], expected: list[Tensor], rows: Any) -> None:
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e[rows])


def parts(T: int) -> list[Any]:
    """Tokens taken out of a batch: one, the ends, some in order, all in another order, some more than once."""
    some = torch.randperm(T)[: T // 3].sort().values
    ends = [slice(0, 1), slice(T - 1, T), slice(T // 2, T // 2 + 2), slice(0, T - 1), slice(1, T)]
    return [*ends, some, torch.randperm(T), torch.randint(T, (2 * T,))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", TREES, ids=str)
@torch.no_grad()
def test_a_row_does_not_depend_on_the_rows_around_it(tree_arguments, set_threads, sizes, dtype):
    x, *weights = tree_arguments(*sizes, dtype=dtype)
    expected = tree_rows(x, weights)
    for threads in (1, 2, 3):
        set_threads(threads)
        assert_rows(tree_rows(x, weights), expected, slice(None))
        for rows in parts(len(x)):
            assert_rows(tree_rows(x[rows], weights), expected, rows)
    for t in range(0, len(x), 7):
        assert_rows(tree_rows(x[t : t + 1], weights), expected, slice(t, t + 1))
    wide = torch.randn(len(x), 2 * x.shape[1] + 1).to(dtype)
    wide[:, 1::2] = x
    assert_rows(tree_rows(wide[:, 1::2], weights), expected, slice(None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(70, 2, 5, 3, 33, 34), (600, 3, 300, 1, 64, 9), (300, 1, 2, 40, 5, 130)], ids=str)
@torch.no_grad()
def test_a_row_through_experts_does_not_depend_on_the_rows_around_it(indexed_arguments, set_threads, sizes, dtype):
    x, index, *weights, gate = indexed_arguments(*sizes, dtype=dtype)
    expected = indexed_feedforward(x, index, *weights, gate=gate)
    for threads in (1, 2, 3):
        set_threads(threads)
        for rows in (slice(None), *parts(len(x))):
            assert torch.equal(indexed_feedforward(x[rows], index[rows], *weights, gate=gate[rows]), expected[rows])
    for t in range(0, len(x), 7):
        one = slice(t, t + 1)
        assert torch.equal(indexed_feedforward(x[one], index[one], *weights, gate=gate[one]), expected[one])


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_columns_change_no_bit(indexed_arguments, set_threads, dtype):
    """Many tokens through many small experts go through blocks of columns, few do not."""

    def run(rows: Any) -> tuple[Tensor, Tensor]:
        x_ = x.detach()[rows].requires_grad_()
        y = indexed_feedforward(x_, index[rows], w1, b1, w2)
        return y, torch.autograd.grad(y, x_, direction[rows])[0]

    x, index, w1, b1, w2, _, _ = indexed_arguments(900, 30, 9000, 1, 70, 130, dtype=dtype)
    direction = torch.randn(900, 130).to(dtype)
    set_threads(1)
    expected = run(slice(None))
    for threads in (1, 2, 3):
        set_threads(threads)
        for rows in (slice(None), slice(0, 1), slice(600, 800), torch.randint(900, (100,))):
            assert_rows(list(run(rows)), list(expected), rows)


def all_gradients(y: Tensor, arguments: list[Any]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for a in arguments:
        tensors += list(a) if isinstance(a, Leaves) else [a] if isinstance(a, Tensor) and a.requires_grad else []
    torch.manual_seed(3)
    return [y, *torch.autograd.grad(y, tensors, torch.randn(y.shape).to(y.dtype))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("sizes", TREES[:4], ids=str)
def test_gradients_repeat_whatever_the_number_of_threads(tree_arguments, set_threads, sizes, gradient, dtype):
    arguments = tree_arguments(*sizes, dtype=dtype)
    runs = []
    for threads in (1, 1, 2, 2, 3):
        set_threads(threads)
        torch.manual_seed(4)
        y, _ = tree_feedforward(*arguments, gradient=gradient)
        runs.append(all_gradients(y, arguments))
    assert runs[0][1].abs().max() > 0
    for run in runs[1:]:
        for g, e in zip(run, runs[0], strict=True):
            assert torch.equal(g, e)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(70, 2, 5, 3, 33, 34), (600, 3, 300, 1, 64, 9), (300, 1, 2, 40, 5, 130)], ids=str)
def test_indexed_gradients_repeat_whatever_the_number_of_threads(indexed_arguments, set_threads, sizes, dtype):
    arguments = indexed_arguments(*sizes, dtype=dtype)
    runs = []
    for threads in (1, 1, 2, 2, 3):
        set_threads(threads)
        *others, gate = arguments
        runs.append(all_gradients(indexed_feedforward(*others, gate=gate), arguments))
    for run in runs[1:]:
        for g, e in zip(run, runs[0], strict=True):
            assert torch.equal(g, e)


def test_the_input_s_gradient_does_not_depend_on_the_rows_around_it(tree_arguments):
    x, *weights = tree_arguments(600, 33, 34, 2, 8, 3, 2)
    for gradient in ("none", "chosen", "exact"):

        def grad_x(x: Tensor, gradient: str = gradient) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(tree_feedforward(x, *weights, gradient=gradient)[0].sum(), x)[0]

        expected = grad_x(x)
        for rows in parts(len(x)):
            assert torch.equal(grad_x(x[rows]), expected[rows])


def test_gradients_too_large_for_a_cache_have_the_same_bits():
    T, K, L, R, O = 1100, 4, 1024, 16, 4096  # two rows a leaf: 134 MB, of half the columns 67 MB, of a quarter 34 MB
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=g) for shape in ((T, R), (K, L - 1, R), (K, L - 1)))
    w1, b1, grad_y = (torch.randn(shape, generator=g) for shape in ((K, L, 1, R), (K, L, 1), (T, O)))

    def grad_w2(columns: slice) -> Tensor:
        part = grad_y[:, columns]
        w2 = torch.zeros(K, L, 1, 2, part.shape[1], requires_grad=True)
        tree_feedforward(x, weight, bias, leaves=Leaves(w1, b1, w2), gradient="none")[0].backward(part)
        return w2.grad

    whole = grad_w2(slice(None))
    for first in range(0, O, O // 4):
        columns = slice(first, first + O // 4)
        assert torch.equal(whole[..., columns], grad_w2(columns))
