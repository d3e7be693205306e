"""Which of our activations a module of another library is."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastff.ops import ACTIVATIONS

TOLERANCE = 0.05  # the approximations of GELU are within 0.02 of it, no two of ours within 0.1 of each other


def nearest_activation(function: Callable[[Tensor], Tensor]) -> str | None:
    """The key of `fastff.ops.ACTIVATIONS` whose values on [-3, 3] are nearest those of `function`.

    All forms of GELU that Transformers has ("gelu_new", "gelu_pytorch_tanh", "quick_gelu", ...) are "gelu".

    Returns:
        The key, or None if no values are within 0.05 everywhere.
    """
    z = torch.linspace(-3, 3, 61, device="cpu", dtype=torch.float32)
    y = function(z.clone())  # it may work in place
    error, name = min(((ours(z) - y).abs().max().item(), name) for name, ours in ACTIVATIONS.items())
    return name if error < TOLERANCE else None
