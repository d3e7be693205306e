"""Trained layers to int8 or bfloat16, in models that keep their dtype."""

import torch
from torch import nn

from fastff.nn.int8_layer import Int8Layer
from fastff.nn.layer import FeedForwardLayer, one_of


def quantize(model: nn.Module, dtype: torch.dtype = torch.int8) -> nn.Module:
    """Turn the weights of the feedforward layers in `model` into int8 or bfloat16, in place.

    For inference, after training. Whatever dtype inputs have, outputs have the same, and the rest of the model stays as
    it is. `state_dict` holds the weights as they are then.

    Args:
        model: any module; layers that are in int8 already stay as they are.
        dtype: of the weights. `torch.int8`: every tree layer (`FFF`, `UltraFFF`, `TreeFeedForward`) and `PEER`, a
            quarter of the memory, and on CPUs several times the speed; on other devices the slow definition runs. A row
            keeps one scale, tokens are quantised when they come, sums are exact in int32 (`fastff.ops.tree_int8`). A
            base is merged. To load a state dict in int8, quantise the model first.
            `torch.bfloat16`: every layer of this library, half the memory, on every device. Tokens are rounded to
            bfloat16 when they come, sums are float32.

    Returns:
        `model`.

    Raises:
        ValueError: another dtype; `model` has no such layer, a tree has not grown to its depth, or a weight that
            becomes int8 is no number or infinite.
    """
    one_of("dtype", dtype, (torch.int8, torch.bfloat16))
    kind = Int8Layer if dtype == torch.int8 else FeedForwardLayer
    layers = [module for module in model.modules() if isinstance(module, kind)]
    if not layers:
        needed = "layers made of trees or product keys" if kind is Int8Layer else "layers of this library"
        raise ValueError(f"model must have {needed}, {type(model).__name__} has none")
    for layer in layers:
        if isinstance(layer, Int8Layer) and layer.int8 is not None:
            continue
        if dtype == torch.bfloat16:
            layer.to(dtype)
            layer.casts_input = True
        elif isinstance(layer, Int8Layer):
            layer.quantize()
    return model
