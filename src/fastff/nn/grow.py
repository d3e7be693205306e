"""Trees that grow while they train: every leaf is split in two, and the function stays the same."""

import math

import torch
from torch import Tensor, nn

from fastff.nn.tree_feedforward import TreeFeedForward, here, repeat_rows


def start_growth(model: nn.Module, share: float = 0.0) -> nn.Module:
    """Let every `TreeFeedForward` in `model` begin with the levels that decide at `share` of the growth, in place.

    A level that does not decide yet is a neuron of each leaf, so a token runs as many neurons as in the whole tree; at
    first the layer is a dense one of its `inference_width`. `grow` adds the levels. Parameters have their final shapes,
    of which the first rows are in use; `state_dict` gives the whole tree of the same function, so that what is saved
    midway is not mistaken for another.

    Args:
        model: any module.
        share: of the growth that is over, 0 or more; above 0 when training is resumed.

    Returns:
        `model`.

    Raises:
        ValueError: `share` is negative or no number, or parameters are sharded in a dimension other than 0.
    """
    for layer in _trees(model):
        kept = min(_levels(layer, share), layer.levels)
        for name, level, first in layer.rows_by_level():
            if level > kept:
                rows, used = here(getattr(layer, name))[:, first:], 2 ** min(level, layer.levels)
                rows[:, : 2**kept] = rows[:, : used : used >> kept].clone()
        layer.levels = kept
    return model


def grow(model: nn.Module, share: float, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Let the levels decide that are due at `share` of the growth, of every `TreeFeedForward` in `model`, in place.

    To be called after every step of training, or now and then. Level k begins at the share (k / depth)^2, as the more
    leaves there are, the fewer samples come to each. The first of the neurons of a leaf that wait to become nodes
    decides: tokens on its two sides go on to leaves of their own, copies of what the leaf was. So the model computes
    what it did before, and what leaves have learned from many tokens serves all below them. A tree that is whole, as
    one is without `start_growth`, stays as it is.

    Args:
        model: any module.
        share: of the growth that is over, 0 or more; from 1 on trees are whole.
        optimizer: its moments are copied along.

    Raises:
        ValueError: `share` is negative or no number, or parameters are sharded in a dimension other than 0.
    """
    for layer in _trees(model):
        while layer.levels < _levels(layer, share):
            leaves = 2**layer.levels
            for name, level, first in layer.rows_by_level():
                if level > layer.levels:
                    for values in _with_moments(getattr(layer, name), optimizer):
                        repeat_rows(values[:, first : first + 2 * leaves], leaves)
            layer.levels += 1


def _levels(layer: TreeFeedForward, share: float) -> int:
    """That decide at `share` of the growth."""
    if not share >= 0:
        raise ValueError(f"share must be 0 or more, got {share}")
    return math.floor(min(share, 1) ** 0.5 * layer.depth)


def _trees(model: nn.Module) -> list[TreeFeedForward]:
    return [module for module in model.modules() if isinstance(module, TreeFeedForward)]


def _with_moments(parameter: nn.Parameter, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """A parameter, and what an optimiser keeps for each of its elements, as plain tensors."""
    state = optimizer.state.get(parameter, {}) if optimizer else {}
    return [here(t) for t in (parameter, *state.values()) if isinstance(t, Tensor) and t.shape == parameter.shape]
