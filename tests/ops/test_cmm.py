"""The three products against their one-line definitions."""

import pytest
import torch
from torch import Tensor

from fastff.ops import cmm_in, cmm_out, cmm_outer

# T tokens, S blocks a token, B blocks, W rows a block, I columns.
SIZES = [(5, 2, 4, 1, 3), (3, 1, 1, 3, 1), (4, 3, 9, 3, 63), (2, 2, 3, 1, 1000), (63, 2, 5, 3, 7), (40, 3, 3, 5, 1000)]
DEGENERATE = [(0, 2, 3, 2, 4), (4, 0, 3, 2, 4), (4, 0, 3, 1, 4), (0, 0, 3, 2, 4), (4, 0, 0, 2, 4), (0, 2, 0, 2, 4)]


def in_definition(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return torch.einsum("ti,tswi->tsw", x, weight[index])


def out_definition(a: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return torch.einsum("tsw,tswi->ti", a, weight[index])


def outer_definition(a: Tensor, x: Tensor, index: Tensor, blocks: int) -> Tensor:
    named = torch.nn.functional.one_hot(index, blocks).to(x.dtype) if blocks else x.new_zeros(*index.shape, 0)
    return torch.einsum("tsw,ti,tsb->bwi", a, x, named)


def arguments(
    T: int, S: int, B: int, W: int, I: int, dtype: torch.dtype = torch.float64, grad: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (T, I), a (T, S, W), weight (B, W, I), index (T, S); block 0 is named by no token where there are others."""
    x, a, weight = (torch.randn(s).to(dtype).requires_grad_(grad) for s in ((T, I), (T, S, W), (B, W, I)))
    index = torch.randint(min(1, B - 1), B, (T, S)) if T * S else torch.empty(T, S, dtype=torch.int64)
    return x, a, weight, index


@pytest.mark.parametrize("sizes", SIZES + DEGENERATE, ids=str)
def test_products_equal_their_definitions(sizes):
    x, a, weight, index = arguments(*sizes)
    B = weight.shape[0]
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(cmm_in(x, weight, index), in_definition(x, weight, index), **close)
    torch.testing.assert_close(cmm_out(a, weight, index), out_definition(a, weight, index), **close)
    torch.testing.assert_close(cmm_outer(a, x, index, B), outer_definition(a, x, index, B), **close)


def test_no_rows_are_gathered(watch):
    x, a, weight, index = arguments(50, 2, 4, 3, 8)
    with watch() as seen:
        cmm_in(x, weight, index)
        cmm_out(a, weight, index)
        cmm_outer(a, x, index, 4)
    assert 0 < seen.largest <= 50 * 8  # an input or output; not 50 * 2 * 3 * 8 gathered elements


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_s_bits_do_not_depend_on_the_tokens_around_it(dtype):
    x, a, weight, index = arguments(64, 2, 5, 3, 64, dtype=dtype)
    whole_in, whole_out = cmm_in(x, weight, index), cmm_out(a, weight, index)
    for t in (slice(0, 1), slice(63, 64), slice(10, 33), torch.randperm(64)):
        assert torch.equal(cmm_in(x[t], weight, index[t]), whole_in[t])
        assert torch.equal(cmm_out(a[t], weight, index[t]), whole_out[t])


@pytest.mark.parametrize("sizes", [(5, 2, 400, 3, 4), (40, 2, 3, 4, 7)], ids=str)
def test_non_contiguous_arguments_give_the_same(sizes):
    x, a, weight, index = arguments(*sizes)
    x2, a2, w2, i2 = (t.mT.contiguous().mT for t in (x, a, weight, index))
    strided = torch.stack([x, x], 1)[:, 0]
    assert not any(t.is_contiguous() for t in (x2, w2, i2, strided))
    close = {"rtol": 1e-12, "atol": 1e-12}
    for x3 in (x2, strided):
        torch.testing.assert_close(cmm_in(x3, w2, i2), cmm_in(x, weight, index), **close)
        expected = cmm_outer(a, x, index, weight.shape[0])
        torch.testing.assert_close(cmm_outer(a2, x3, i2, weight.shape[0]), expected, **close)
    torch.testing.assert_close(cmm_out(a2, w2, i2), cmm_out(a, weight, index), **close)
    torch.testing.assert_close(
        cmm_in(x[:1].expand_as(x), weight, index), in_definition(x[:1].expand_as(x), weight, index)
    )


@pytest.mark.parametrize("sizes", [(3, 2, 4, 1, 3), (6, 2, 3, 2, 3), (4, 0, 3, 1, 2), (0, 2, 3, 2, 2)], ids=str)
def test_first_and_second_derivatives(sizes):
    x, a, weight, index = arguments(*sizes, grad=True)
    B = weight.shape[0]
    calls = [
        (lambda x, w: cmm_in(x, w, index), (x, weight)),
        (lambda a, w: cmm_out(a, w, index), (a, weight)),
        (lambda a, x: cmm_outer(a, x, index, B), (a, x)),
    ]
    for call, inputs in calls:
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("sizes", [(5, 2, 4, 1, 3), (12, 2, 3, 2, 3)], ids=str)
def test_operators_pass_opcheck(sizes):
    x, a, weight, index = arguments(*sizes, dtype=torch.float32, grad=True)
    torch.library.opcheck(cmm_in, (x, weight, index))
    torch.library.opcheck(cmm_out, (a, weight, index))
    torch.library.opcheck(cmm_outer, (a, x, index, weight.shape[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(50, 3, 40, 1, 300), (60, 2, 4, 8, 300)], ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_torch(sizes, dtype):
    x, a, weight, index = arguments(*sizes, dtype=dtype)
    B = weight.shape[0]
    cases = [
        (cmm_in, in_definition, (x, weight, index)),
        (cmm_out, out_definition, (a, weight, index)),
        (lambda a, x, i: cmm_outer(a, x, i, B), lambda a, x, i: outer_definition(a, x, i, B), (a, x, index)),
    ]
    for ours, definition, (first, second, i) in cases:
        exact = definition(first.double(), second.double(), i)
        result = ours(first, second, i)
        assert result.dtype == dtype
        error, bound = ((y.double() - exact).norm() for y in (result, definition(first, second, i)))
        assert 0 < error <= 2 * bound


def test_index_out_of_range_raises_whatever_way_is_taken():
    for sizes in ((5, 2, 40, 2, 3), (40, 2, 4, 2, 3), (40, 2, 4, 1, 3)):
        x, a, weight, index = arguments(*sizes)
        for wrong in (weight.shape[0], -1):
            index[1, 1] = wrong
            for call in (
                lambda x=x, w=weight, i=index: cmm_in(x, w, i),
                lambda a=a, w=weight, i=index: cmm_out(a, w, i),
                lambda a=a, x=x, i=index, w=weight: cmm_outer(a, x, i, w.shape[0]),
            ):
                with pytest.raises(IndexError, match="index must name blocks from 0 to"):
                    call()


def test_wrong_dtypes_raise_type_error():
    x, a, weight, index = arguments(5, 2, 4, 3, 3)
    for call in (
        lambda: cmm_in(x.float(), weight, index),
        lambda: cmm_out(a, weight.float(), index),
        lambda: cmm_in(x, weight, index.int()),
        lambda: cmm_out(a, weight, index.double()),
        lambda: cmm_outer(a.float(), x, index, 4),
        lambda: cmm_outer(a, x, index.int(), 4),
    ):
        with pytest.raises(TypeError, match="dtype|int64"):
            call()


def test_wrong_shapes_raise_value_error():
    x, a, weight, index = arguments(5, 2, 4, 3, 3)
    for call in (
        lambda: cmm_in(x[:, :2], weight, index),
        lambda: cmm_in(x[:4], weight, index),
        lambda: cmm_in(x, weight[0], index),
        lambda: cmm_in(a, weight, index),  # three dimensions where two are due
        lambda: cmm_out(a[:, :1], weight, index),
        lambda: cmm_out(a[..., :2], weight, index),
        lambda: cmm_out(x, weight, index),
        lambda: cmm_outer(a[:3], x, index, 4),
        lambda: cmm_outer(a[:, :1], x, index, 4),
        lambda: cmm_outer(a, x[:3], index, 4),
    ):
        with pytest.raises(ValueError, match="shape"):
            call()
