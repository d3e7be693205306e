"""What is compared, by label: a layer or a model, its dtype, and what is timed in its place."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastff.nn import FeedForwardLayer, merge_base
from fastff.nn.layer import uniform_


class UnavailableError(Exception):
    """This installation cannot run a candidate."""


class Candidate(ABC):
    """One line of a comparison.

    Attributes:
        label: names it in tables.
        series: its line in a plot over widths: what does not change with the width.
        kind: dense, bound, moe, fff, ultra or tree; gives the colour.
        dtype: of weights and inputs.
        base: whether the ratios are taken to this candidate.
        width, executed: neurons that its feedforward layer has, and that a token runs in inference.
        weight_bytes: of all its weights.
        optimizer: of a module, for whole training steps.
        graph: whether calls are captured as CUDA graphs, which are then replayed.
        precision: of the products, where it is not the dtype: "int8".
    """

    label: str
    series: str
    kind: str
    dtype: torch.dtype
    base: bool
    width: int
    executed: int
    weight_bytes: int
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None
    graph: bool = False
    precision: str = ""

    @property
    def dtype_name(self) -> str:
        return self.precision or str(self.dtype).removeprefix("torch.")

    @abstractmethod
    def build(self, *, training: bool) -> nn.Module:
        """The module that is timed, all its weights random."""

    @abstractmethod
    def working_bytes(self, tokens: int, *, training: bool) -> int:
        """About what a call needs beside the weights: hidden values, and in training gradients."""


@dataclass(frozen=True)
class LayerCandidate(Candidate):
    """A feedforward layer alone.

    Attributes:
        make: makes the layer on the device given.
        wrap: what is timed in place of the layer; its attribute `definition` is the layer that it must agree with.
    """

    label: str
    series: str
    kind: str
    make: Callable[[Any], FeedForwardLayer]
    dtype: torch.dtype = torch.float32
    wrap: Callable[[Any], nn.Module] | None = None
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    base: bool = False
    graph: bool = False
    precision: str = ""
    width: int = field(init=False)
    executed: int = field(init=False)
    weight_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        layer = self.make("meta")
        object.__setattr__(self, "width", layer.training_width)
        object.__setattr__(self, "executed", layer.inference_width)
        object.__setattr__(self, "weight_bytes", bytes_of(layer, self.dtype))

    def build(self, *, training: bool) -> nn.Module:
        layer = self.make(torch.get_default_device()).train(training)
        if not training:
            merge_base(fill_zeros(layer, layer.in_features))
        module = fill_zeros(layer, layer.in_features).to(self.dtype)
        return module if self.wrap is None else self.wrap(module).train(training)

    def working_bytes(self, tokens: int, *, training: bool) -> int:
        hidden = 4 * tokens * self.executed * (4 if training else 2)
        return hidden + (self.weight_bytes if training else 0) + (2 * self.weight_bytes if self.optimizer else 0)


def bytes_of(module: nn.Module, dtype: torch.dtype) -> int:
    """Of all parameters, were they of `dtype`."""
    return sum(p.numel() for p in module.parameters()) * dtype.itemsize


def fill_zeros(module: nn.Module, fan_in: int) -> nn.Module:
    """Fill what starts at zero (offsets of leaves, gates of experts, biases) as the other weights; returns `module`."""
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                uniform_(p, fan_in)
    return module
