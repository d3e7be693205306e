"""Where trees start whose leaves alone put out: each leaf at the pretrained neurons that its own tokens use.

Nodes split the tokens along their main directions (`fastff.initialise_from_data`). A leaf then takes the neurons whose
part of the output varies most over the tokens that reach it, and what these put out is fitted to the whole output over
those tokens, by least squares. One tree after the other, each to what the trees before it leave over, and all to what
dense neurons beside them leave over.
"""

import torch
from torch import Tensor

from fastff.hf.distillation.fit import Neurons, fit, values
from fastff.nn import FeedForwardLayer, TreeFeedForward, initialise_from_data

LEAST = 4  # tokens for each number that is fitted; leaves with fewer get those of all


def has_own_leaves(layer: FeedForwardLayer) -> bool:
    """Whether `start_leaves` is for this layer: leaves alone put out, and see what the function sees."""
    return isinstance(layer, TreeFeedForward) and layer.rank is None and not layer.contributing


def start_leaves(layer: TreeFeedForward, neurons: Neurons | None, x_TI: Tensor, y_TO: Tensor) -> None:
    """Set nodes, leaves and the dense neurons beside them of `layer`, which has no base, in place."""
    p: dict[str, Tensor] = dict(layer.named_parameters())
    K, L, W = layer.trees, 2**layer.depth, layer.leaf_width
    leaf_TK = torch.zeros(len(x_TI), K, dtype=torch.int64, device=x_TI.device)
    if layer.depth:
        initialise_from_data(layer, [x_TI], samples=len(x_TI))
        layer(x_TI)
        leaf_TK = layer.routing.leaf
    sides = 2 if layer.two_sided else 1
    scale_O, rest_TO = y_TO.std(0).clamp_min(1e-6), y_TO.clone()
    if layer.master_width:
        rest_TO -= _start_master(p, neurons, layer.activation, scale_O, x_TI, y_TO)
    for k in range(K):
        for leaf in range(L):
            own = leaf_TK[:, k] == leaf
            here = own if own.sum() >= LEAST * sides * W else torch.ones_like(own)
            if neurons is None:  # the weights stay, and the mean is put out besides
                if layer.leaf_bias:
                    p["leaf_b2"][k, leaf] = y_TO[here].mean(0) / K
                continue
            z_TNG, rest = neurons.logits(x_TI[here]), rest_TO[here]
            chosen = neurons.most_used(z_TNG, scale_O, W, rest if k or layer.master_width else None)
            n = len(chosen)
            rows_FO, bias_O = fit(values(z_TNG[:, chosen], layer.activation, sides), rest)
            for name, rows in (("leaf_w1", neurons.w1), ("leaf_b1", neurons.b1)):  # a leaf's: what is activated, gates
                p[name][k, leaf].unflatten(0, (-1, W))[:, :n] = rows[chosen].transpose(0, 1)
            p["leaf_w2"][k, leaf, :n] = rows_FO.view(n, *p["leaf_w2"].shape[3:])
            p["leaf_w2"][k, leaf, n:] = 0
            if layer.leaf_bias:
                p["leaf_b2"][k, leaf] = bias_O
            out = values(neurons.logits(x_TI[own])[:, chosen], layer.activation, sides) @ rows_FO
            rest_TO[own] -= out + bias_O * layer.leaf_bias


def _start_master(
    p: dict[str, Tensor], neurons: Neurons | None, activation: str, scale_O: Tensor, x_TI: Tensor, y_TO: Tensor
) -> Tensor:
    """Set dense neurons to the most used ones, in place; returns what they put out, without a bias (T, out)."""
    p["master_w2"].zero_()
    if neurons is None or neurons.gates != 1:  # dense neurons have no gates
        return torch.zeros_like(y_TO)
    z_TNG = neurons.logits(x_TI)
    chosen = neurons.most_used(z_TNG, scale_O, len(p["master_w2"]))
    n, hidden_TF = len(chosen), values(z_TNG[:, chosen], activation, 1)
    p["master_w1"][:n], p["master_b1"][:n] = neurons.w1[chosen, 0], neurons.b1[chosen, 0]
    p["master_w2"][:n] = fit(hidden_TF, y_TO)[0]
    return hidden_TF @ p["master_w2"][:n]
