"""The three products of conditional matrix multiplication as PyTorch operators: schema, fake, autograd.

They are opaque to `torch.compile` and `torch.export`, so that a graph holds one call whatever the number of tokens.
Shapes as in `reference.py`: T tokens, S blocks a token, B blocks, W rows a block, I columns.
"""

from typing import Any

import torch
from torch import Tensor

from fastff.ops.checks import check_cmm, check_cmm_outer
from fastff.ops.cmm import reference


@torch.library.custom_op("fastff::cmm_in", mutates_args=())
def cmm_in(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Product of each token with the rows of the blocks that it names.

    Args:
        x: (T, I), floating point.
        weight: (B, W, I), dtype and device of `x`.
        index: (T, S) int64, values in [0, B).

    Returns:
        (T, S, W): `weight[index[t, s], w] . x[t]`.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit together.
        IndexError: on a CPU, an index out of range.
    """
    check_cmm(weight, index, x_TI=x)
    return reference.cmm_in(x, weight, index)


@torch.library.custom_op("fastff::cmm_out", mutates_args=())
def cmm_out(a: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Sum of the rows of the blocks that each token names, each row times its own factor.

    Args:
        a: (T, S, W), floating point.
        weight: (B, W, I), dtype and device of `a`.
        index: (T, S) int64, values in [0, B).

    Returns:
        (T, I): sum over s, w of `a[t, s, w] * weight[index[t, s], w]`.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit together.
        IndexError: on a CPU, an index out of range.
    """
    check_cmm(weight, index, a_TSW=a)
    return reference.cmm_out(a, weight, index)


@torch.library.custom_op("fastff::cmm_outer", mutates_args=())
def cmm_outer(a: Tensor, x: Tensor, index: Tensor, blocks: int) -> Tensor:
    """Outer products of factors and tokens, added up in the blocks that each token names: the gradient of a weight.

    Args:
        a: (T, S, W), floating point.
        x: (T, I), dtype and device of `a`.
        index: (T, S) int64, values in [0, blocks).
        blocks: B.

    Returns:
        (blocks, W, I): sum over the (t, s) that name the block of `a[t, s, w] * x[t]`; zeros where none does.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit together.
        IndexError: on a CPU, an index out of range.
    """
    check_cmm_outer(a, x, index, blocks)
    return reference.cmm_outer(a, x, index, blocks)


@cmm_in.register_fake
def _(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(index.shape[0], index.shape[1], weight.shape[1])


@cmm_out.register_fake
def _(a: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], weight.shape[2])


@cmm_outer.register_fake
def _(a: Tensor, x: Tensor, index: Tensor, blocks: int) -> Tensor:
    return x.new_empty(blocks, a.shape[2], x.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, index, *_ = inputs
    ctx.save_for_backward(first, second, index)


def _cmm_in_backward(ctx: Any, g_TSW: Tensor) -> tuple[Tensor | None, ...]:
    x_TI, weight_BWI, index = ctx.saved_tensors
    grad_x = cmm_out(g_TSW, weight_BWI, index) if ctx.needs_input_grad[0] else None
    grad_weight = cmm_outer(g_TSW, x_TI, index, weight_BWI.shape[0]) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, None


def _cmm_out_backward(ctx: Any, g_TI: Tensor) -> tuple[Tensor | None, ...]:
    a_TSW, weight_BWI, index = ctx.saved_tensors
    grad_a = cmm_in(g_TI, weight_BWI, index) if ctx.needs_input_grad[0] else None
    grad_weight = cmm_outer(a_TSW, g_TI, index, weight_BWI.shape[0]) if ctx.needs_input_grad[1] else None
    return grad_a, grad_weight, None


def _cmm_outer_backward(ctx: Any, g_BWI: Tensor) -> tuple[Tensor | None, ...]:
    a_TSW, x_TI, index = ctx.saved_tensors
    grad_a = cmm_in(x_TI, g_BWI, index) if ctx.needs_input_grad[0] else None
    grad_x = cmm_out(a_TSW, g_BWI, index) if ctx.needs_input_grad[1] else None
    return grad_a, grad_x, None, None


cmm_in.register_autograd(_cmm_in_backward, setup_context=_save)
cmm_out.register_autograd(_cmm_out_backward, setup_context=_save)
cmm_outer.register_autograd(_cmm_outer_backward, setup_context=_save)
