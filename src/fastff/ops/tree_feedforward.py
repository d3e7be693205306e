"""The tree family as one function: descend, contribute along the path, run the indexed leaf.

P1's hard FFF is a tree whose nodes do not contribute, P2's neuron tree one without leaves (its last level of nodes is
the leaves of one neuron), `TreeFeedForward` the general case.

The gradient of a hard decision is the straight-through one: the path weight of a node or leaf is the product over its
ancestors of hard + p - stop_gradient(p), p = sigmoid(logit) of the side. Its value is 1 on the path and 0 elsewhere;
differentiated at a decision on the path it gives p' times (what the chosen side put out - what the other side, itself
followed hard to its leaf, would have put out). So no leaf that lies more than one wrong turn away is evaluated.

Shapes: T tokens, K trees, D levels, N = 2^D - 1 nodes, L = 2^D leaves, W leaf width, S = 1 or 2 output rows a node.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastff.ops.activation import activate
from fastff.ops.cmm import cmm_in, cmm_out
from fastff.ops.descend import descend, global_rows
from fastff.ops.indexed_feedforward import indexed_feedforward

GRADIENTS = ("exact", "sampled", "chosen", "none")


class Leaves(NamedTuple):
    """The leaves of K trees: w1 (K, L, W, I), b1 (K, L, W), w2 (K, L, W, O), b2 (K, L, O)."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def detach(self) -> "Leaves":
        return Leaves(*(t.detach() for t in self))


class Path(NamedTuple):
    """The way of each token: logits (T, K, D) and nodes (T, K, D), root first, and the leaf (T, K) it ends in."""

    logits: Tensor
    nodes: Tensor
    leaf: Tensor


def tree_feedforward(
    x: Tensor,
    node_weight: Tensor,
    node_bias: Tensor,
    node_out: Tensor | None = None,
    leaves: Leaves | None = None,
    *,
    activation: str = "gelu",
    gradient: str = "exact",
    dropout: float = 0.0,
) -> tuple[Tensor, Path]:
    """Sum over K trees of what the nodes on the path contribute and what the leaf at its end puts out.

    Args:
        x: (T, I), floating point.
        node_weight, node_bias: (K, N, I) and (K, N), the decisions: right where the logit z is >= 0.
        node_out: (K, N, S, O) or None. S = 1: a node on the path adds activation(z) times its row. S = 2: it adds
            relu(-z) times row 0 and relu(z) times row 1, of which one is zero.
        leaves: the leaves' feedforward networks, or None.
        activation: a key of `fastff.ops.ACTIVATIONS`, for one-sided nodes and for leaves.
        gradient: of the decisions. "exact": straight-through, D + 1 leaves a token and tree in training;
            "sampled": of one level a token and tree, drawn evenly, times D: unbiased, 2 leaves; "chosen": without the
            other side: 1 leaf; "none", the true gradient of the hard function: decisions learn only by what their node
            contributes: 1 leaf.
        dropout: probability with which a leaf's hidden neuron is left out.

    Returns:
        y (T, O) and the path.

    Raises:
        ValueError: unknown gradient, or neither `node_out` nor `leaves` given.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
    if node_out is None and leaves is None:
        raise ValueError("node_out or leaves must be given: a tree without both has no output")
    logits, nodes = descend(x, node_weight, node_bias)
    right = logits >= 0
    leaf = _leaf_below(nodes, right)
    path = Path(logits, nodes, leaf)

    learns = gradient != "none" and logits.requires_grad
    step = _straight_through(logits, right) if learns else None  # (T, K, D), value 0
    levels = None
    if step is not None and gradient == "sampled" and step.shape[-1]:
        levels = torch.randint(step.shape[-1], (*leaf.shape, 1), device=x.device)  # (T, K, 1)
        drawn = torch.zeros_like(step).scatter(-1, levels, float(step.shape[-1]))
        step = step * drawn

    before = None if step is None else 1 + step.cumsum(-1) - step  # path weight of each node, (T, K, D), value 1
    y = _outputs(x, path, node_out, leaves, before, None if step is None else 1 + step.sum(-1), activation, dropout)
    if step is not None and gradient != "chosen" and step.shape[-1]:
        other = _other_sides(x, path, node_weight, node_bias, node_out, leaves, step, levels, activation)
        y = y + other.nan_to_num(0.0, 0.0, 0.0)  # 0 also where a side that is not taken overflows
    return y, path


def _straight_through(logits: Tensor, right: Tensor) -> Tensor:
    """p - stop_gradient(p) of the side taken: value 0, gradient that of its probability."""
    p = torch.sigmoid(torch.where(right, logits, -logits))
    return p - p.detach()


def _leaf_below(nodes_TKD: Tensor, right_TKD: Tensor) -> Tensor:
    """The leaf (T, K) at the end of a path: its bits are the decisions, root first."""
    D = nodes_TKD.shape[-1]
    place = 2 ** torch.arange(D - 1, -1, -1, device=nodes_TKD.device)
    return (right_TKD * place).sum(-1)


def _outputs(
    x: Tensor,
    path: Path,
    node_out: Tensor | None,
    leaves: Leaves | None,
    node_gate: Tensor | None,
    leaf_gate: Tensor | None,
    activation: str,
    dropout: float,
) -> Tensor:
    """Contributions (node_gate (T, K, D)) and leaves (leaf_gate (T, K)) of the paths, summed: (T, O)."""
    parts = []
    if node_out is not None:
        parts.append(contribute(path.logits, path.nodes, node_out, activation, node_gate))
    if leaves is not None:
        parts.append(_run_leaves(x, path.leaf, leaves, activation, leaf_gate, dropout))
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def contribute(logits: Tensor, nodes: Tensor, node_out: Tensor, activation: str, gate: Tensor | None) -> Tensor:
    """Sum over the M nodes a tree names of gate * activation(z) * output row.

    Args:
        logits, nodes: (T, K, M).
        node_out: (K, N, S, O); S = 2 is two-sided, |z| times the row of the side.
        gate: (T, K, M), 1 if None.

    Returns:
        (T, O).
    """
    K, N, S, O = node_out.shape
    row = global_rows(nodes, N)
    amplitude = activate(logits, activation) if S == 1 else logits.abs()
    if S == 2:
        row = 2 * row + (logits >= 0)
    if gate is not None:
        amplitude = amplitude * gate
    return cmm_out(amplitude.flatten(1).unsqueeze(-1), node_out.reshape(K * N * S, 1, O), row.flatten(1))


def _run_leaves(
    x: Tensor, leaf: Tensor, leaves: Leaves, activation: str, gate: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Leaves (T, K) or (T, K, M) of the trees, times the gate of the same shape (1 if None), summed: (T, O)."""
    index = global_rows(leaf, leaves.b1.shape[1]).flatten(1)
    experts = (t.flatten(0, 1) for t in leaves)
    gate = None if gate is None else gate.flatten(1)
    return indexed_feedforward(x, index, *experts, activation=activation, gate=gate, dropout=dropout)


def _other_sides(
    x: Tensor,
    path: Path,
    node_weight: Tensor,
    node_bias: Tensor,
    node_out: Tensor | None,
    leaves: Leaves | None,
    step: Tensor,
    levels: Tensor | None,
    activation: str,
) -> Tensor:
    """Zero in value; its gradient takes from each decision what the side not taken would have put out.

    `levels` (T, K, 1) names the one level whose other side is followed; None means every level. A side is followed
    hard, from the sibling of the next node on the path to a leaf; only the step carries a gradient.
    """
    D = step.shape[-1]
    x, node_weight, node_bias = x.detach(), node_weight.detach(), node_bias.detach()
    sibling = 2 * path.nodes + 2 - (path.logits >= 0).long()  # the child on the side not taken, (T, K, D)
    if levels is None:
        here, gate, level = sibling, -step, torch.arange(D, device=x.device)
    else:
        here, gate, level = sibling.gather(-1, levels), -step.gather(-1, levels), levels
    seen: list[tuple[Tensor, Tensor, Tensor]] = []  # logits, nodes, gates of the nodes passed, each (T, K, slots)
    for depth in range(1, D):
        slots = slice(depth) if levels is None else slice(None)  # those whose other side begins at or above here
        node, moving = here[..., slots], level[..., slots] < depth
        row = global_rows(torch.where(moving, node, 0), node_weight.shape[1])
        logits = cmm_in(x, node_weight.flatten(0, 1).unsqueeze(1), row.flatten(1)).view(node.shape)
        logits = logits + node_bias.flatten()[row]
        seen.append((logits, torch.where(moving, node, 0), gate[..., slots] * moving))
        below = torch.where(moving, 2 * node + 1 + (logits >= 0).long(), node)
        here = torch.cat([below, here[..., depth:]], dim=-1) if levels is None else below
    y = x.new_zeros(())
    if node_out is not None and seen:
        logits, nodes, gates = (torch.cat(t, dim=-1) for t in zip(*seen, strict=True))
        y = y + contribute(logits, nodes, node_out.detach(), activation, gates)
    if leaves is not None:
        y = y + _run_leaves(x, here - (2**D - 1), leaves.detach(), activation, gate)
    return y
