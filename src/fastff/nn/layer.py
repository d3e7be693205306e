"""What all feedforward layers share: the check of arguments and input, and the handling of autocast and shapes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastff.ops import ACTIVATIONS

DEEPEST = 30  # a tree of 2^30 leaves, of one feature each, has 4 GB of decisions alone


def whole_number(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int, or raise a TypeError or ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value}")
    return value


def probability(name: str, value: Any) -> float:
    """Return `value` as a float in [0, 1), or raise a TypeError or ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return float(value)


def one_of(name: str, value: Any, choices: Any) -> Any:
    """Return `value`, or raise a ValueError that names the argument and the choices."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    return value


def is_bias(name: str) -> bool:
    """Whether the parameter of a layer that is called `name` is a bias: b1, leaf_b2, b_in, node_bias and the like."""
    return name.rpartition("_")[2] in ("b1", "b2", "bias") or name == "b_in"


def uniform_(parameter: Tensor, fan: int) -> None:
    """Fill with uniform(+-1/sqrt(fan)), the initialisation of both papers."""
    bound = 1 / math.sqrt(max(1, fan))
    nn.init.uniform_(parameter, -bound, bound)


class FeedForwardLayer(nn.Module, ABC):
    """Base of the layers: (..., in_features) -> (..., out_features) through `forward_tokens` on (T, in_features).

    Subclasses give the widths, the multiply-adds, and `forward_tokens`: x (T, in_features) and the layer's parameters
    by name, in the dtype of x -> (T, out_features).
    """

    forward_tokens: Callable[..., Tensor]
    zero_parameters: tuple[str, ...] = ()  # those that every initialisation leaves at 0
    parameter_names: tuple[str, ...]  # attributes rather than `_parameters`: parametrisations replace those
    casts_input: bool = False  # to the dtype of the parameters, and the output back: see `fastff.quantize`

    def __init__(self, in_features: int, out_features: int | None, activation: str) -> None:
        super().__init__()
        self.in_features = whole_number("in_features", in_features, 1)
        self.out_features = whole_number("out_features", in_features if out_features is None else out_features, 1)
        self.activation = one_of("activation", activation, ACTIVATIONS)

    def _register(self, shapes: dict[str, tuple[int, ...]], device: Any, dtype: Any) -> None:
        """Create the parameters, and fill them."""
        self.parameter_names = tuple(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialise anew."""

    @property
    @abstractmethod
    def training_width(self) -> int:
        """Neurons that the layer has."""

    @property
    @abstractmethod
    def inference_width(self) -> int:
        """Neurons that one token runs in inference."""

    @abstractmethod
    def multiply_adds(self, *, training: bool) -> int:
        """Multiply-adds of one token's forward: products of an input or hidden value with a weight, biases left out."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to each vector of the last dimension.

        Args:
            x: (..., in_features), any leading shape, also empty; floating point, of the parameters' dtype unless
                autocast is on, which casts all parameters in each forward: for inference rather convert the layer, or
                have `fastff.quantize` put its weights into bfloat16, after which x may have any floating-point dtype.

        Returns:
            (..., out_features), of the dtype of x unless autocast is on.

        Raises:
            TypeError: `x` is not a floating-point tensor, or has another dtype than the parameters.
            ValueError: the last dimension is not in_features.
        """
        autocasts = autocasts_input(x)
        # `_parameters` is quicker than attributes, but lacks those that a parametrisation has replaced.
        stored: Any = self._parameters
        parameters = {name: stored[name] if name in stored else getattr(self, name) for name in self.parameter_names}
        stored_dtype = next(iter(parameters.values())).dtype
        self._check_input(x, None if self.casts_input else stored_dtype, autocasts)
        tokens = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        if autocasts:
            device_type = x.device.type
            dtype = torch.get_autocast_dtype(device_type)
            with torch.autocast(device_type, enabled=False):  # one dtype from here on
                y = self.forward_tokens(tokens.to(dtype), **{name: p.to(dtype) for name, p in parameters.items()})
        elif self.casts_input:
            y = self.forward_tokens(tokens.to(stored_dtype), **parameters).to(x.dtype)
        else:
            y = self.forward_tokens(tokens, **parameters)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)

    def _check_input(self, x: Tensor, dtype: torch.dtype | None, autocasts: bool) -> None:
        """Whether `x` fits the layer and the dtype of the parameters; None: whatever dtype it has."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a floating-point tensor, got {what}")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x must have {self.in_features} features in its last dimension, got shape {tuple(x.shape)}"
            )
        if dtype is not None and x.dtype != dtype and not autocasts:
            raise TypeError(f"x must have the dtype of the parameters, {dtype}, or autocast be on; got {x.dtype}")


def autocasts_input(x: Tensor) -> bool:
    """Whether autocast is on for `x`; it leaves float64 alone, as everywhere in PyTorch."""
    if not isinstance(x, Tensor):
        return False
    device_type = "cpu" if x.is_cpu else x.device.type  # asking for the device is slow
    # the meta device knows no autocast
    return not x.is_meta and torch.is_autocast_enabled(device_type) and x.dtype != torch.float64
