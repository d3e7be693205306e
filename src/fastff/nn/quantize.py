"""Trained layers to int8."""

from torch import nn

from fastff.nn.tree_layer import TreeLayer


def quantize(model: nn.Module) -> nn.Module:
    """Turn the weights of every tree layer in `model` (`FFF`, `UltraFFF`, `TreeFeedForward`) into int8, in place.

    For inference alone, after training. A row of weights keeps one scale, tokens are quantised when they come, sums are
    exact in int32 (`fastff.ops.tree_int8`): a quarter of the memory, and on CPUs several times the speed; on other
    devices the slow definition runs. Inputs and outputs keep their dtype, whatever it is. A base is merged, a master
    leaf stays as it is. `state_dict` holds the bytes; to load it, quantise the model first.

    Args:
        model: any module; layers that are in int8 already stay as they are.

    Returns:
        `model`.

    Raises:
        ValueError: `model` has no tree layer, a tree has not grown to its depth, or a weight is no number or infinite.
    """
    layers = [module for module in model.modules() if isinstance(module, TreeLayer)]
    if not layers:
        raise ValueError(f"model must have layers made of trees, {type(model).__name__} has none")
    for layer in layers:
        if layer.int8 is None:
            layer.quantize()
    return model
