"""How layers route data: the use of each leaf over many forwards, and the warning of a collapse onto few."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastff.nn.routed import RoutedLayer
from fastff.nn.routing import TreeRouting

COLLAPSED_BELOW = 0.25  # effective leaves as a share of all leaves: with fewer, a layer's routing has collapsed


@dataclass
class LayerUse:
    """How one layer routed a split: how often each leaf was reached, and each node's mean entropy (nats).

    Attributes:
        leaf_counts: (K, L) int64. For an MoE K = 1 and leaves are experts.
        node_counts: (K, N) int64.
        node_entropy_sum: (K, N) float64.
    """

    leaf_counts: Tensor
    node_counts: Tensor
    node_entropy_sum: Tensor

    @property
    def leaf_usage(self) -> Tensor:
        return self.leaf_counts / self.leaf_counts.sum(-1, keepdim=True).clamp_min(1)

    @property
    def effective_leaves(self) -> float:
        """Exp of the entropy of the usage, mean over trees."""
        return torch.special.entr(self.leaf_usage).sum(-1).exp().mean().item()

    @property
    def used_leaves(self) -> float:
        """Share of leaves that get more than 0.2 % of the samples (a quarter of an equal share, if that is less)."""
        return (self.leaf_usage > min(0.002, 0.25 / self.leaf_counts.shape[1])).float().mean().item()

    @property
    def node_entropy(self) -> Tensor:
        """(K, N): mean entropy of each node's decisions, NaN where it made none."""
        return self.node_entropy_sum / self.node_counts

    @property
    def mean_entropy(self) -> float:
        return (self.node_entropy_sum.sum() / self.node_counts.sum().clamp_min(1)).item()

    def map(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put `change` of each of the three tensors in its place, as a sum over processes does."""
        for name in ("leaf_counts", "node_counts", "node_entropy_sum"):
            setattr(self, name, change(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON (NaN as None)."""
        entropy = [[None if v != v else round(v, 5) for v in tree] for tree in self.node_entropy.tolist()]
        return {
            "leaves": self.leaf_counts.shape[1],
            "effective_leaves": self.effective_leaves,
            "used_leaves": self.used_leaves,
            "mean_entropy": self.mean_entropy,
            "leaf_counts": self.leaf_counts.tolist(),
            "node_entropy": entropy,
        }


def add_use(model: nn.Module, layers: dict[str, LayerUse]) -> None:
    """Add what the last forward of each routed layer in `model` decided to `layers`, by the layer's name."""
    for name, module in model.named_modules():
        if not isinstance(module, RoutedLayer):
            continue
        routing = module.routing
        leaves = routing.leaf_counts.cpu()
        if isinstance(routing, TreeRouting):
            nodes = routing.node_counts.cpu()
            entropy = torch.nan_to_num(routing.node_entropy.cpu().double()) * nodes
        else:
            nodes, entropy = leaves.new_zeros(1, 0), torch.zeros(1, 0, dtype=torch.float64)
        if name in layers:
            layers[name].leaf_counts += leaves
            layers[name].node_counts += nodes
            layers[name].node_entropy_sum += entropy
        else:
            layers[name] = LayerUse(leaves, nodes, entropy)


def collapse_warning(layers: dict[str, dict[str, Any]]) -> str | None:
    """What to tell the user if a layer's routing has collapsed onto few leaves; None if none has.

    Args:
        layers: per layer name, `LayerUse.to_dict()`.
    """
    for name, use in layers.items():
        leaves, effective = use["leaves"], use["effective_leaves"]
        if leaves >= 4 and effective < COLLAPSED_BELOW * leaves:
            return (
                f"layer {name!r} has collapsed: as good as {effective:.1f} of its {leaves} leaves are used, the rest "
                "learns nothing. Add a balance loss (balance=0.1; an MoE: importance and load), set the decisions from "
                "the data first (initialise), lower the hardening weight, or use the layer 'tree'."
            )
    return None
