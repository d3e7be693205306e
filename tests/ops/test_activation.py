"""The activations by name."""

import math

import pytest
import torch

from fastff.ops import ACTIVATIONS, activate

FORMULAS = {
    "relu": lambda z: max(z, 0.0),
    "gelu": lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "tanh": math.tanh,
    "identity": lambda z: z,
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_equals_its_formula(name):
    z = torch.linspace(-5, 5, 41, dtype=torch.float64).view(-1, 1)
    expected = torch.tensor([FORMULAS[name](float(v)) for v in z], dtype=torch.float64).view(-1, 1)
    torch.testing.assert_close(activate(z, name), expected, rtol=1e-12, atol=1e-12)
