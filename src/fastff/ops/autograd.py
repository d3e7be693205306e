"""Autograd of operators that many small calls go through.

`torch.library.register_autograd` reads an operator's whole schema anew for each of its arguments, in every call, to
fill in defaults: 70 µs for the 18 arguments of a tree, more than the kernels take of a few tokens. Ours have none.
"""

from collections.abc import Callable
from typing import Any

import torch

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
