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
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}  # order of the kernels' enumeration


def activation_code(activation: str) -> int:
    """The place of the activation called `activation` among `ACTIVATIONS`, by which the kernels know it.

    Raises:
        ValueError: no such activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return _CODES[activation]


def activation_name(code: int) -> str:
    """The name of the activation whose code it is."""
    return list(ACTIVATIONS)[code]


def activate(z: Tensor, activation: str) -> Tensor:
    """Apply the activation called `activation` (a key of `ACTIVATIONS`) to `z`, elementwise, any shape."""
    activation_code(activation)  # raises if there is none
    return ACTIVATIONS[activation](z)
