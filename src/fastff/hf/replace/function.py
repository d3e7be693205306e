"""A feedforward function inside a model, and the sizes of the linear layers that it is made of."""

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fastff.hf.replace.activation import nearest_activation

Linear = nn.Linear | Conv1D  # GPT-2's Conv1D is a linear layer with the weight transposed


@dataclass(frozen=True)
class FeedForwardFunction:
    """A feedforward function inside a model: linear, activation, linear; or the gated form with a third linear.

    Attributes:
        features: size of input and output.
        width: hidden neurons.
        activation: the nearest key of `fastff.ops.ACTIVATIONS`, None if there is none near.
        dtype, device: of its weights.
        dropout: the dropout that follows within the same module; it is no part of the function.
        others: names of the other modules that make the function up, where not one module does.
        linears: names of the linear layers in the model, in the order in which they run: that of the hidden neurons
            first, that of the output last.
        gated: whether hidden neurons are multiplied by a gate, as in SwiGLU.
    """

    features: int
    width: int
    activation: str | None
    dtype: torch.dtype
    device: torch.device
    dropout: nn.Module | None = field(default=None, repr=False)
    others: tuple[str, ...] = field(default=(), repr=False)
    linears: tuple[str, ...] = field(default=(), repr=False)
    gated: bool = False


def function_of(
    up: Linear,
    down: Linear,
    activation: nn.Module,
    *,
    dropout: nn.Module | None = None,
    others: tuple[str, ...] = (),
    linears: tuple[str, ...],
) -> FeedForwardFunction:
    """The function that starts with `up` and ends with `down`."""
    features, width = sizes(up)[0], sizes(down)[0]
    weight: torch.Tensor = up.weight
    name = nearest_activation(activation)
    gated = len(linears) == 3 or sizes(up)[1] == 2 * width
    return FeedForwardFunction(features, width, name, weight.dtype, weight.device, dropout, others, linears, gated)


def sizes(linear: Linear) -> tuple[int, int]:
    """Sizes of the last dimension of input and output."""
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def has_own_tensors(module: nn.Module) -> bool:
    """Whether it has parameters or buffers besides those of its children."""
    return any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))


def is_plain(module: nn.Module) -> bool:
    """Whether it has neither children nor parameters nor buffers."""
    return not any(True for _ in module.children()) and not has_own_tensors(module)


def is_activation(module: nn.Module) -> bool:
    """Whether it may be an activation: something plain that is nothing else."""
    return is_plain(module) and not isinstance(module, nn.Dropout | nn.Identity | nn.LayerNorm)
