"""What one timed call does: a forward of whatever kind, a forward and backward, or a whole training step."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

FORWARD, BACKWARD, STEP = "forward", "forward + backward", "training step"

Call = Callable[..., Any]


def is_training(kind: str) -> bool:
    """Whether gradients are computed."""
    return kind in (BACKWARD, STEP)


def call_of(kind: str, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Call:
    """The function that is timed: of a batch (x,), in training of (x, gradient of the output).

    Gradients of the input and of all parameters are computed anew each time (`grad` is None before).
    """
    if not is_training(kind):
        return module
    parameters = list(module.parameters())

    def backward(x: Tensor, gradient: Tensor) -> None:
        x.grad = None
        for p in parameters:
            p.grad = None
        module(x).backward(gradient)

    if kind == BACKWARD:
        return backward
    assert optimizer is not None

    def step(x: Tensor, gradient: Tensor) -> None:
        backward(x, gradient)
        optimizer.step()

    return step


def mode_of(kind: str) -> AbstractContextManager[Any]:
    """What calls are made under."""
    return nullcontext() if is_training(kind) else torch.inference_mode()
