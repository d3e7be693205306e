"""Layers by name and precision: `tree:depth=9,leaf_width=1,trees=8@int8`."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn

from fastff.bench.candidate import LayerCandidate, UnavailableError
from fastff.bench.opponents import Int8, linear_in_int8
from fastff.bench.settings import Settings
from fastff.nn import FeedForward, FeedForwardLayer, build_layer, parse_layer, quantize
from fastff.nn.int8_layer import Int8Layer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = (*DTYPES, "int8")


def split_precision(text: str) -> tuple[str, str]:
    """The layer, and the precision behind its @, float32 without one.

    Raises:
        ValueError: no such precision.
    """
    layer, at, precision = text.partition("@")
    if at and precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r} in {text!r}")
    return layer, precision or "float32"


def layer_candidate(
    s: Settings,
    text: str,
    *,
    base: bool = False,
    sparse: bool = False,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> LayerCandidate:
    """The layer that `text` names, in the precision that it names.

    Args:
        s: gives the features.
        text: as of `split_precision`.
        base: whether ratios are taken to it.
        sparse: whether its gradients are sparse tensors; it has the series of the same layer without.
        wrap: what is timed in place of the module.
    """
    layer, precision = split_precision(text)
    built = f"{layer}{',' if ':' in layer else ':'}sparse=true" if sparse else layer
    wraps = [w for w in (in_int8 if precision == "int8" else None, wrap) if w is not None]

    def wrapped(module: Any) -> nn.Module:
        for one in wraps:
            module = one(module)
        return module

    return LayerCandidate(
        label=f"{text}, sparse" if sparse else text,
        series=layer,
        kind=layer.partition(":")[0],
        make=lambda device: build_layer(built, s.in_features, s.out_features, device=device),
        dtype=DTYPES.get(precision, torch.float32),
        precision=precision,
        wrap=wrapped if wraps else None,
        base=base,
    )


def has_int8(text: str) -> bool:
    """Whether the layer that `text` names has a form in int8."""
    return issubclass(parse_layer(text)[0], Int8Layer | FeedForward)


def has_sparse(text: str) -> bool:
    """Whether the layer that `text` names can have sparse gradients."""
    return "sparse" in signature(parse_layer(text)[0]).parameters


def in_int8(layer: FeedForwardLayer) -> nn.Module:
    """Trees and PEER as `fastff.quantize` makes them, dense layers in PyTorch's dynamic int8."""
    if isinstance(layer, Int8Layer):
        return quantize(layer)
    if isinstance(layer, FeedForward):
        return Int8(layer)
    raise UnavailableError(f"{type(layer).__name__} has no int8")


def model_in_int8(model: nn.Module) -> nn.Module:
    """All of a model, in place: feedforward layers as `in_int8` makes them, every other `nn.Linear` in dynamic int8."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FeedForwardLayer):
            model.set_submodule(name, in_int8(module))
    quantised: nn.Module = linear_in_int8(model)
    return quantised
