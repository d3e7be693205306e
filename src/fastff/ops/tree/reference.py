"""The tree family: the definition, composed of conditional matrix multiplications.

The gradient of a hard decision is the straight-through one: the path weight of a node or leaf is the product over its
ancestors of hard + p - stop_gradient(p), p = sigmoid(logit) of the side. Its value is 1 on the path and 0 elsewhere;
differentiated at a decision on the path it gives p' times (what the chosen side put out - what the other side, itself
followed hard to its leaf, would have put out). So no leaf that lies more than one wrong turn away is evaluated.

Shapes: T tokens, K trees, D levels, N = 2^D - 1 nodes, L = 2^D leaves, W leaf width, S = 1 or 2 output rows a node or
leaf neuron.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastff.ops.activation import activate
from fastff.ops.autograd import may_learn
from fastff.ops.cmm import cmm_in, cmm_out
from fastff.ops.descend import descend, global_rows
from fastff.ops.indexed import reference as indexed


class Leaves(NamedTuple):
    """The leaves of K trees: w1 (K, L, W, I), b1 (K, L, W), w2 (K, L, W, O), b2 (K, L, O) or None.

    Or w2 (K, L, W, 2, O): two-sided neurons, which put out relu(-z) times row 0 and relu(z) times row 1. Or w1
    (K, L, 2 W, I) and b1 (K, L, 2 W): gated neurons, of which w is activation(z_w) * z_(W + w).
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor | None = None

    @property
    def gated(self) -> bool:
        return self.w2.dim() == 4 and self.w1.shape[2] == 2 * self.w2.shape[2]

    def detach(self) -> "Leaves":
        return Leaves(*(None if t is None else t.detach() for t in self))  # type: ignore[arg-type]

    def plus(self, base: "Leaves") -> "Leaves":
        """With a base (K, 1, ...) added to each."""
        own = zip(self, base, strict=True)
        return Leaves(*(None if t is None or b is None else t + b for t, b in own))  # type: ignore[arg-type]


class Path(NamedTuple):
    """The way of each token through each of K trees.

    Attributes:
        logits: (T, K, D), root first; float32, or float64 if the layer is.
        leaf: (T, K) int64, the leaf in which it ends; its bits, from the highest on, are the decisions (1: right).
    """

    logits: Tensor
    leaf: Tensor

    @property
    def nodes(self) -> Tensor:
        """(T, K, D) int64: the nodes passed, root first, numbered breadth first."""
        return nodes_above(self.leaf, self.logits.shape[-1])


def nodes_above(leaf: Tensor, depth: int) -> Tensor:
    """The nodes on the way to each leaf: (..., depth), root first, numbered breadth first."""
    levels = torch.arange(depth, device=leaf.device)
    return (1 << levels) - 1 + (leaf.unsqueeze(-1) >> (depth - levels))


def tree_feedforward(
    x: Tensor,
    node_weight: Tensor,
    node_bias: Tensor,
    node_out: Tensor | None,
    leaves: Leaves | None,
    base: Leaves | None = None,
    *,
    activation: str,
    gradient: str,
    levels: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Path]:
    """As `fastff.ops.tree_feedforward`, with what is drawn at random given.

    Args:
        levels: (T, K) int64, for the gradient "sampled" the level drawn of each token and tree.
        mask: (T, K, W), a factor of each hidden neuron of the leaf on the path, or None.
    """
    if leaves is not None and base is not None:
        leaves = leaves.plus(base)
    if node_out is not None and node_out.dim() == 3:
        node_out = node_out.unsqueeze(2)
    logits, nodes = descend(x, node_weight, node_bias)
    right = logits >= 0
    leaf = _leaf_below(nodes, right)
    path = Path(logits.to(torch.promote_types(logits.dtype, torch.float32)), leaf)

    learns = gradient != "none" and may_learn(logits) and logits.shape[-1] > 0
    step = _straight_through(logits, right) if learns else None  # (T, K, D), value 0
    drawn = levels.unsqueeze(-1) if levels is not None and gradient == "sampled" else None  # (T, K, 1)
    if step is not None and drawn is not None:
        step = step * torch.zeros_like(step).scatter(-1, drawn, float(step.shape[-1]))

    y = x.new_zeros(())
    if node_out is not None:
        gate = None if step is None else 1 + step.cumsum(-1) - step  # path weight of each node, (T, K, D), value 1
        y = y + contribute(logits, nodes, node_out, activation, gate)
    if leaves is not None:
        y = y + run_leaves(x, leaf, leaves, activation, None if step is None else 1 + step.sum(-1), mask)
    if step is not None and gradient != "chosen":
        other = _other_sides(x, logits, nodes, node_weight, node_bias, node_out, leaves, step, drawn, activation)
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


def run_leaves(
    x: Tensor, leaf: Tensor, leaves: Leaves, activation: str, gate: Tensor | None, mask: Tensor | None = None
) -> Tensor:
    """Leaves (T, K) or (T, K, M) of the trees, times the gate of the same shape (1 if None), summed: (T, O)."""
    index = global_rows(leaf, leaves.b1.shape[1]).flatten(1)
    experts: Any = (None if t is None else t.flatten(0, 1) for t in leaves)
    gate = None if gate is None else gate.flatten(1)
    return indexed.indexed_feedforward(x, index, *experts, activation=activation, gate=gate, mask=mask)


def _other_sides(
    x: Tensor,
    logits: Tensor,
    nodes: Tensor,
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
    sibling = 2 * nodes + 2 - (logits >= 0).long()  # the child on the side not taken, (T, K, D)
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
        y = y + run_leaves(x, here - (2**D - 1), leaves.detach(), activation, gate)
    return y
