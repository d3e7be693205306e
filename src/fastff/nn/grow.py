"""Trees that grow while they train: every leaf is split in two, and the function stays the same."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastff.nn.initialise import inputs_in_order, set_decision
from fastff.nn.layer import whole_number
from fastff.nn.tree_feedforward import LEAF_PARAMETERS, TreeFeedForward


def start_growth(model: nn.Module, levels: int = 0) -> nn.Module:
    """Let every `TreeFeedForward` in `model` begin with `levels` levels of nodes, in place; `grow` adds the others.

    Until then the layer is the tree of so many levels; of the leaves below each of its ends it keeps the leftmost. Its
    parameters have their final shapes, of which the first rows are in use; `state_dict` gives the whole tree of the
    same function, so that what is saved midway is not mistaken for another.

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
            for name in LEAF_PARAMETERS:
                leaf = getattr(layer, name)
                leaf[:, : 2**kept] = leaf[:, : 2**layer.levels : 2 ** (layer.levels - kept)].clone()
        layer.levels = kept
    return model


def grow(
    model: nn.Module,
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    samples: int = 4000,
    seed: int = 0,
) -> bool:
    """Add a level to every `TreeFeedForward` in `model` that has not all of them yet (`start_growth`), in place.

    Each leaf becomes a node whose children are copies of it, so the model computes what it did before; the node
    halves the samples that reach it along their main direction, as `initialise_from_data` does, and contributes
    nothing yet. What leaves have learned from many samples so serves all below them.

    Args:
        model, batches, samples, seed: as of `initialise_from_data`.
        optimizer: its moments of the leaves are copied along; those of new nodes start at 0.

    Returns:
        Whether any tree has a level left to grow.

    Raises:
        ValueError: no batch was given, or a tree layer of `model` never ran on them or saw no token, or its parameters
            are sharded.
    """
    generator = torch.Generator().manual_seed(seed)
    growing = [layer for layer in _trees(model) if layer.levels < layer.depth]
    if growing:
        for layer, x_TI in inputs_in_order(model, batches, samples):
            if layer in growing:
                assert isinstance(layer, TreeFeedForward)
                if hasattr(layer.node_weight, "full_tensor"):  # a DTensor, whose class takes a second to import
                    raise ValueError("model must have whole parameters to grow, got sharded ones")
                _add_level(layer, x_TI, optimizer, generator)
    return any(layer.levels < layer.depth for layer in growing)


def _trees(model: nn.Module) -> list[TreeFeedForward]:
    return [module for module in model.modules() if isinstance(module, TreeFeedForward)]


@torch.no_grad()
def _add_level(
    layer: TreeFeedForward, x_TI: Tensor, optimizer: torch.optim.Optimizer | None, generator: torch.Generator
) -> None:
    leaves = 2**layer.levels
    new = slice(leaves - 1, 2 * leaves - 1)  # the nodes that the leaves become
    layer(x_TI.to(layer.node_weight.dtype))
    leaf_TK = layer.routing.leaf
    for k in range(layer.trees):
        for leaf in range(leaves):
            here = x_TI[leaf_TK[:, k] == leaf]
            set_decision(here, layer.node_weight, layer.node_bias, k, leaves - 1 + leaf, generator)
    for values in _with_moments(layer.node_out, optimizer):
        values[:, new] = 0
    for name in ("node_weight", "node_bias"):
        for moments in _with_moments(getattr(layer, name), optimizer)[1:]:
            moments[:, new] = 0
    for name in LEAF_PARAMETERS:
        for values in _with_moments(getattr(layer, name), optimizer):
            values[:, : 2 * leaves] = values[:, :leaves].repeat_interleave(2, dim=1)
    layer.levels += 1


def _with_moments(parameter: nn.Parameter, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """A parameter, and what an optimiser keeps for each of its elements."""
    state = optimizer.state.get(parameter, {}) if optimizer else {}
    return [parameter, *(v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape)]
