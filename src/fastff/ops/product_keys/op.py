"""Product keys as a PyTorch operator: schema, fake, autograd; the kernel is in `csrc/`."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastff.ops.autograd import gradients_by_definition, register_autograd

torch.library.define("fastff::product_keys", "(Tensor query, Tensor keys, int count) -> (Tensor score, Tensor pair)")
torch.library.define(
    "fastff::product_keys_backward",
    "(Tensor grad, Tensor query, Tensor keys, Tensor pair, int needs) -> (Tensor, Tensor)",
)


@torch.library.register_fake("fastff::product_keys")
def _(query: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], count)
    return query.new_empty(shape), query.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("fastff::product_keys_backward")
def _(grad: Tensor, query: Tensor, keys: Tensor, pair: Tensor, needs: int) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape if needs >> i & 1 else 0) for i, t in enumerate((query, keys)))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_QK: Tensor, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    query_QF, keys_2nf, pair_QK = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled():  # the gradient of the gradient goes through the definition
        definition = partial(_definition, pair_QK=pair_QK)
        grad_query, grad_keys = gradients_by_definition(definition, (query_QF, keys_2nf), (grad_QK,), needs[:2])
        return grad_query, grad_keys, None
    grads = torch.ops.fastff.product_keys_backward.default(
        grad_QK, query_QF, keys_2nf, pair_QK, needs[0] + 2 * needs[1]
    )
    return grads[0] if needs[0] else None, grads[1] if needs[1] else None, None


def _definition(query_QF: Tensor, keys_2nf: Tensor, *, pair_QK: Tensor) -> tuple[Tensor]:
    """The scores of pairs that are chosen already."""
    n = keys_2nf.shape[1]
    halves = zip(query_QF.chunk(2, dim=-1), keys_2nf, (pair_QK // n, pair_QK % n), strict=True)
    return (sum((half_Qf @ own_nf.T).gather(1, number_QK) for half_Qf, own_nf, number_QK in halves),)


register_autograd("product_keys", _backward, _save)
