"""Product keys as a PyTorch operator: schema, fake, autograd; the kernel is in `csrc/`."""

from typing import Any

import torch
from torch import Tensor

from fastff.ops.autograd import register_autograd

torch.library.define("fastff::product_keys", "(Tensor query, Tensor keys, int count) -> (Tensor score, Tensor pair)")


@torch.library.register_fake("fastff::product_keys")
def _(query: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], count)
    return query.new_empty(shape), query.new_empty(shape, dtype=torch.int64)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_QK: Tensor, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    """Made of differentiable functions, so that it can be differentiated again."""
    query_QF, keys_2nf, pair_QK = ctx.saved_tensors
    n = keys_2nf.shape[1]
    grads_Qn = [
        grad_QK.new_zeros(len(query_QF), n).scatter_add(1, number_QK, grad_QK)
        for number_QK in (pair_QK // n, pair_QK % n)
    ]
    grad_query = grad_keys = None
    if ctx.needs_input_grad[0]:
        grad_query = torch.cat([g_Qn @ own for g_Qn, own in zip(grads_Qn, keys_2nf, strict=True)], -1)
    if ctx.needs_input_grad[1]:
        halves = zip(grads_Qn, query_QF.chunk(2, dim=-1), strict=True)
        grad_keys = torch.stack([g_Qn.T @ half for g_Qn, half in halves])
    return grad_query, grad_keys, None


register_autograd("product_keys", _backward, _save)
