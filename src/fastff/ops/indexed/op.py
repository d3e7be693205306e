"""The indexed feedforward as one PyTorch operator: schema, fake, autograd; the kernels are in `csrc/` for
CPUs, in `triton.py` for GPUs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastff.ops.activation import activation_name
from fastff.ops.autograd import gradients_by_definition, register_autograd
from fastff.ops.backend import register_triton
from fastff.ops.checks import check_devices
from fastff.ops.indexed import reference

_TENSORS = "Tensor x, Tensor index, Tensor w1, Tensor b1, Tensor w2, Tensor? b2, Tensor? gate, Tensor? mask"
torch.library.define("fastff::indexed", f"({_TENSORS}, int activation, bool keep_hidden) -> (Tensor y, Tensor hidden)")
torch.library.define(
    "fastff::indexed_backward",
    f"(Tensor grad_y, {_TENSORS}, Tensor hidden, int activation, int needs) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("fastff::indexed")
def _(x: Tensor, index: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    check_devices(x, index, w1, b1, w2, *(t for t in options if isinstance(t, Tensor)))
    T, S = index.shape
    hidden = x.new_empty(T if options[-1] else 0, S, w1.shape[1], dtype=torch.float32)
    return x.new_empty(T, w2.shape[2]), hidden


@torch.library.register_fake("fastff::indexed_backward")
def _(grad_y: Tensor, x: Tensor, index: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    check_devices(grad_y, x, index, *(t for t in inputs if isinstance(t, Tensor)))
    shapes = [x.shape, *(() if t is None else t.shape for t in inputs[:4]), index.shape]
    return tuple(grad_y.new_empty(shape if inputs[-1] >> i & 1 else 0) for i, shape in enumerate(shapes))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, activation, keep_hidden = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.options = activation, keep_hidden
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_y: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, index, w1, b1, w2, b2, gate, mask, hidden = ctx.saved_tensors
    activation, keep_hidden = ctx.options
    places = (0, 2, 3, 4, 5, 6)  # of what learns, among the inputs
    needs = [ctx.needs_input_grad[i] for i in places]
    grads: Sequence[Tensor | None]
    if torch.is_grad_enabled():  # the gradient of the gradient goes through the definition
        definition = partial(_definition, index=index, activation=activation_name(activation), mask=mask)
        grads = gradients_by_definition(definition, (x, w1, b1, w2, b2, gate), (grad_y,), needs)
    else:
        if not keep_hidden:
            raise RuntimeError("the forward was run without keeping what the backward needs (keep_hidden)")
        bits = sum(need << bit for bit, need in enumerate(needs))
        grads = torch.ops.fastff.indexed_backward.default(
            grad_y, x, index, w1, b1, w2, b2, gate, mask, hidden, activation, bits
        )
    found = {i: g for i, g, need in zip(places, grads, needs, strict=True) if need}
    return tuple(found.get(i) for i in range(10))


def _definition(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor | None,
    gate: Tensor | None,
    *,
    index: Tensor,
    **options: Any,
) -> tuple[Tensor]:
    return (reference.indexed_feedforward(x, index, w1, b1, w2, b2, gate=gate, **options),)


register_autograd("indexed", _backward, _save)
for name in ("indexed", "indexed_backward"):
    register_triton(name, "fastff.ops.indexed.triton", name)
