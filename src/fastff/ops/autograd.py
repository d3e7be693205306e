"""Autograd of operators that many small calls go through.

`torch.library.register_autograd` reads an operator's whole schema anew for each of its arguments, in every call, to
fill in defaults: 70 µs for the 18 arguments of a tree, more than the kernels take of a few tokens. Ours have none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("fastff", "FRAGMENT")


def register_autograd(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """As `torch.library.register_autograd("fastff::" + name, backward, setup_context=save)`."""
    operator = getattr(torch.ops.fastff, name).default

    def below(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = below(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    def dispatch(*inputs: Any) -> Any:
        learns = torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in inputs)
        return Function.apply(*inputs) if learns else below(*inputs)

    _library.impl(name, dispatch, "Autograd")


def may_learn(*tensors: Tensor | None) -> bool:
    """Whether what is computed of these may be differentiated. Within `torch.vmap` tensors hide whether they learn."""
    hidden = torch._C._are_functorch_transforms_active()
    return torch.is_grad_enabled() and (hidden or any(t is not None and t.requires_grad for t in tensors))


def gradients_by_definition(
    definition: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of an operator's inputs, to be differentiated once more.

    Args:
        definition: what the operator computes, of `tensors` as positional arguments, in differentiable functions.
        tensors: the inputs; each enters as a view of its own, so that where one was computed from another, as an
            expert's gate from the tokens, the gradient ends at the operator, outside of which autograd goes on.
        grads: of what it returns, None where nothing came in.
        needs: which of the tensors want a gradient.
    """
    views = [None if t is None else t.view_as(t) for t in tensors]
    outputs = zip(definition(*views), grads, strict=True)
    learning = [(y, g) for y, g in outputs if g is not None and y.requires_grad]
    ys, outer = [y for y, _ in learning], [g for _, g in learning]
    wanted = [v for v, need in zip(views, needs, strict=True) if need and v is not None]
    found = iter(torch.autograd.grad(ys, wanted, outer, create_graph=True, allow_unused=True))
    return [next(found) if need and v is not None else None for v, need in zip(views, needs, strict=True)]
