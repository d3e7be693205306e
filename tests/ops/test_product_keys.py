"""Product keys against a search of all pairs."""

import pytest
import torch
from torch import Tensor

from fastff.ops import instruction_set, product_keys, use_backend

BACKENDS = ["reference", *(["cpu"] if instruction_set() else [])]
SIZES = [  # queries, keys of a half, features of a query, pairs
    ((37,), 7, 6, 5),
    ((3, 17), 91, 32, 10),  # more queries than lanes, and not a multiple of them
    ((1,), 1, 2, 1),
    ((40,), 3, 4, 9),  # all pairs
    ((200,), 33, 10, 1),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield request.param


def make(shape: tuple[int, ...], n: int, features: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    query, keys = (torch.randn(size, generator=generator) for size in ((*shape, features), (2, n, features // 2)))
    return query.to(dtype), keys.to(dtype)


def all_pairs(query: Tensor, keys: Tensor) -> Tensor:
    """The score of each pair, (..., n^2), in double."""
    first, second = (half @ own.T for half, own in zip(query.double().chunk(2, -1), keys.double(), strict=True))
    return (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2)


@pytest.mark.parametrize(("shape", "n", "features", "count"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finds_the_best_of_all_pairs(backend, shape, n, features, count, dtype):
    query, keys = make(shape, n, features, dtype)
    score, pair = product_keys(query, keys, count)
    assert score.shape == pair.shape == (*shape, count)
    assert score.dtype == dtype
    assert pair.dtype == torch.int64
    every = all_pairs(query, keys)
    tolerance = 1e-5 if dtype == torch.float32 else 64 * torch.finfo(dtype).eps
    best = every.topk(count, dim=-1).values
    torch.testing.assert_close(score.double(), best, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(every.gather(-1, pair), best, rtol=tolerance, atol=tolerance)
    assert all(len(set(row.tolist())) == count for row in pair.view(-1, count))


@pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")
@pytest.mark.parametrize(("shape", "n", "features", "count"), SIZES)
def test_gradients_equal_those_of_the_definition(shape, n, features, count):
    def gradients(name: str) -> list[Tensor]:
        query, keys = (t.requires_grad_() for t in make(shape, n, features))
        with use_backend(name):
            score, _ = product_keys(query, keys, count)
        weight = torch.linspace(0.5, 2, score.numel()).view_as(score)
        first = torch.autograd.grad((weight * score.square()).mean(), (query, keys), create_graph=True)
        second = torch.autograd.grad(sum(g.square().mean() for g in first), (query, keys))
        with use_backend(name):
            squares = [product_keys(query, keys, count)[0].square().sum() for _ in range(2)]
        alone = [torch.autograd.grad(s, t)[0] for s, t in zip(squares, (query, keys), strict=True)]
        return [*first, *second, *alone]

    for found, expected in zip(gradients("cpu"), gradients("reference"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")
def test_gradients_repeat_whatever_the_number_of_threads(set_threads):
    query, keys = (t.requires_grad_() for t in make((9000,), 33, 10))  # parts of more queries than the least
    runs = []
    for threads in (1, 2, 3):
        set_threads(threads)
        runs.append(torch.autograd.grad(product_keys(query, keys, 7)[0].square().sum(), (query, keys)))
    with use_backend("reference"):
        expected = torch.autograd.grad(product_keys(query, keys, 7)[0].square().sum(), (query, keys))
    for found, right in zip(runs[0], expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-3)
    for run in runs[1:]:
        assert all(torch.equal(found, first) for found, first in zip(run, runs[0], strict=True))


@pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")
def test_the_operator_passes_opcheck():
    for queries in (9, 0):
        query, keys = (t.requires_grad_() for t in make((queries,), 5, 4))
        torch.library.opcheck(torch.ops.fastff.product_keys, (query, keys, 3))
        score, pair = product_keys(query.detach(), keys.detach(), 3)
        for needs in range(4):
            arguments = (score, query.detach(), keys.detach(), pair, needs)
            torch.library.opcheck(torch.ops.fastff.product_keys_backward, arguments)


def test_layout_and_neighbours_do_not_matter(backend):
    query, keys = make((50,), 9, 8)
    score, pair = product_keys(query, keys, 4)
    strided = product_keys(query.T.contiguous().T, keys.repeat_interleave(2, dim=1)[:, ::2], 4)
    alone = [product_keys(row, keys, 4) for row in query.split(1)]
    for found in (strided, tuple(torch.cat(rows) for rows in zip(*alone, strict=True))):
        torch.testing.assert_close(found[0], score)
        assert torch.equal(found[1], pair)


def test_a_number_that_is_none_stays_in_its_row(backend):
    query, keys = make((20,), 9, 8)
    expected, _ = product_keys(query, keys, 4)
    query[3, 1], query[7, 6] = torch.nan, torch.inf
    score, pair = product_keys(query, keys, 4)
    well = [i for i in range(20) if i not in (3, 7)]
    torch.testing.assert_close(score[well], expected[well])
    assert ((pair >= 0) & (pair < 81)).all()
    assert score[3].softmax(-1).isnan().all()  # what comes of it shows


def test_no_queries(backend):
    score, pair = product_keys(torch.zeros(0, 3, 4), torch.randn(2, 5, 2), 2)
    assert score.shape == pair.shape == (0, 3, 2)


@pytest.mark.parametrize(
    ("query", "keys", "count", "error", "word"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 5, 3), 2, ValueError, "keys"),
        (torch.zeros(3, 4), torch.zeros(5, 2), 2, ValueError, "keys"),
        (torch.zeros(3, 4), torch.zeros(3, 5, 2), 2, ValueError, "keys"),
        (torch.zeros(3, 4), torch.zeros(2, 5, 2, dtype=torch.bfloat16), 2, TypeError, "dtype"),
        (torch.zeros(3, 4), torch.zeros(2, 5, 2), 0, ValueError, "count"),
        (torch.zeros(3, 4), torch.zeros(2, 5, 2), 26, ValueError, "count"),
    ],
)
def test_bad_arguments_are_named(query, keys, count, error, word):
    with pytest.raises(error, match=word):
        product_keys(query, keys, count)
