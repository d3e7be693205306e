"""Trees that grow while they train: every leaf is split in two, and the function stays the same."""

import torch
from torch import Tensor, nn

from fastff.nn.layer import whole_number
from fastff.nn.tree_feedforward import TreeFeedForward, repeat_rows


def start_growth(model: nn.Module, levels: int = 0) -> nn.Module:
    """Let every `TreeFeedForward` in `model` begin with `levels` levels that decide, in place; `grow` adds the others.

    A level that does not decide yet is a neuron of each leaf, so a token runs as many neurons as in the whole tree;
    with `levels` = 0 the layer is a dense one of its `inference_width`. Parameters have their final shapes, of which
    the first rows are in use; `state_dict` gives the whole tree of the same function, so that what is saved midway is
    not mistaken for another.

    Args:
        model: any module.
        levels: 0 or more; a tree of fewer keeps those it has.

    Returns:
        `model`.
    """
    whole_number("levels", levels, 0)
    for layer in _trees(model):
        kept = min(levels, layer.levels)
        with torch.no_grad():
            for name, level, first in layer.rows_by_level():
                if level > kept:
                    rows, used = getattr(layer, name)[:, first:], 2 ** min(level, layer.levels)
                    rows[:, : 2**kept] = rows[:, : used : used >> kept].clone()
        layer.levels = kept
    return model


def grow(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> bool:
    """Let one more level of every `TreeFeedForward` in `model` decide (`start_growth`), in place.

    The first of the neurons of a leaf that wait to become nodes begins to decide: tokens on its two sides go on to
    leaves of their own, copies of what the leaf was. So the model computes what it did before, and what leaves have
    learned from many tokens serves all below them.

    Args:
        model: any module.
        optimizer: its moments are copied along.

    Returns:
        Whether any tree has a level left to grow.

    Raises:
        ValueError: parameters are sharded.
    """
    growing = [layer for layer in _trees(model) if layer.levels < layer.depth]
    if any(hasattr(layer.node_weight, "full_tensor") for layer in growing):  # a DTensor, a second to import
        raise ValueError("model must have whole parameters to grow, got sharded ones")
    for layer in growing:
        leaves = 2**layer.levels
        for name, level, first in layer.rows_by_level():
            if level > layer.levels:
                for values in _with_moments(getattr(layer, name), optimizer):
                    repeat_rows(values[:, first : first + 2 * leaves], leaves)
        layer.levels += 1
    return any(layer.levels < layer.depth for layer in growing)


def _trees(model: nn.Module) -> list[TreeFeedForward]:
    return [module for module in model.modules() if isinstance(module, TreeFeedForward)]


def _with_moments(parameter: nn.Parameter, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """A parameter, and what an optimiser keeps for each of its elements, as plain tensors."""
    state = optimizer.state.get(parameter, {}) if optimizer else {}
    return [t.detach() for t in (parameter, *state.values()) if isinstance(t, Tensor) and t.shape == parameter.shape]
