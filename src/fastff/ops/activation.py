"""The activation functions of all layers, by name, so that every backend can have its own code for each."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,  # exact (erf), as P2
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda z: z,
}


def activate(z: Tensor, activation: str) -> Tensor:
    """Apply the activation called `activation` (a key of `ACTIVATIONS`) to `z`, elementwise, any shape."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return ACTIVATIONS[activation](z)
