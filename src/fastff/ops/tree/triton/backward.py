"""The backward: what the rows on a way gain, and from that all gradients."""

from typing import Any

import torch
from torch import Tensor

from fastff.ops.checks import check_choice, check_tensor
from fastff.ops.tree.triton.inputs import Call, Tree
from fastff.ops.tree.triton.walk import EXACT, SAMPLED, walk
from fastff.ops.triton.blocks import Blocks, Rows
from fastff.ops.triton.config import SHORT
from fastff.ops.triton.group import Groups, by_tree
from fastff.ops.triton.kernels.columns import LEAVES, NODES, SMALLEST
from fastff.ops.triton.kernels.learn import learn_path
from fastff.ops.triton.launch import columns, divided, launch, on_device, power_of_two
from fastff.ops.triton.outers import Outer, fill
from fastff.ops.triton.products import gains
from fastff.ops.triton.sums import spread


def tree_backward(grad_y: Tensor, grad_logits: Tensor | None, x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """`fastff::tree_backward`."""
    *weights, mask, logits, leaf, hidden, levels, activation, gradient, needs, rows = inputs
    if rows:
        raise ValueError("rows must be false: sparse gradients are made by the CPU kernels alone")
    learning = (x, *weights)
    wanted = [bool(needs >> i & 1) and t is not None for i, t in enumerate(learning)]
    tree = Tree(x, *weights, mask=mask, activation=activation)
    T, K, D = tree.T, tree.K, tree.D
    check_choice("gradient", gradient, 4)
    check_tensor("grad_y", grad_y, x, (T, tree.out_features))
    for name, t, shape in (
        ("logits", logits, (T, K, D)),
        ("hidden", hidden, (T, K, tree.W)),
        ("grad_logits", grad_logits, (T, K, D)),
    ):
        if t is not None:
            check_tensor(name, t, x, shape, torch.float32)
    if gradient == SAMPLED and levels is None:
        raise RuntimeError("levels must be given with sampled gradients")
    for name, t in (("leaf", leaf), ("levels", levels)):
        if t is not None:
            check_tensor(name, t, x, (T, K), torch.int64)
    if T:
        passed = (None if t is None else t.contiguous() for t in (grad_y, grad_logits, logits, leaf, hidden, levels))
        call = Call(tree, gradient, *passed)  # type: ignore[arg-type]
        with on_device(x):
            grads = _backward(call, wanted)
    else:
        grads = [
            torch.zeros_like(t, memory_format=torch.contiguous_format) if w else None
            for t, w in zip(learning, wanted, strict=True)
        ]
    nothing, index = grad_y.new_empty(0), grad_y.new_empty(0, dtype=torch.int64)
    return (*(g if g is not None and w else nothing for g, w in zip(grads, wanted, strict=True)), index, index)


def _backward(call: Call, wanted: list[bool]) -> list[Tensor | None]:
    """Gradients of x, decisions, node_out, leaves, base; None where none of its group is wanted."""
    tree, grad_y, leaf = call.tree, call.grad_y, call.leaf
    plan, W = tree.plan, tree.W
    groups = {0: by_tree(tree.T, tree.K, leaf)}
    groups |= {level: tree.sort(level, leaf) for level in {plan.first, *dict(plan.blocks)} if level}
    last = tree.blocks(plan.first, plan.last, groups[plan.first], leaf)
    grad_node, node_amplitude, grad_hidden, leaf_amplitude = _learn(call, last, groups)
    grads: list[Any] = [None] * len(wanted)
    if wanted[0]:
        grads[0] = torch.empty_like(tree.x)
        nodes = Rows(grad_node, tree.node_weight, 1) if tree.D else None
        spread(last, grads[0], nodes, Rows(grad_hidden, tree.w1, 1) if W else None)
    grads[1:4] = (None if t is None else torch.empty_like(t) for t in (tree.node_weight, tree.node_bias, tree.node_out))
    outers = []
    if W:
        w1, b1, w2, b2 = grads[4:8] = [torch.empty_like(t) for t in (tree.w1, tree.b1, tree.w2, tree.b2)]
        if any(wanted[i] for i in (4, 5, 8, 9)):
            outers.append(Outer(last, grad_hidden, tree.x, w1, LEAVES, W, bias=b1))
        if wanted[6] or wanted[10]:
            outers.append(Outer(last, leaf_amplitude, grad_y, w2, LEAVES, W, tree.leaf_sides, logits=call.hidden))
        if wanted[7] or wanted[11]:
            ones = torch.ones_like(leaf, dtype=torch.float32).unsqueeze(-1)
            outers.append(Outer(last, ones, grad_y, b2, LEAVES))
    for first, levels in reversed(plan.blocks):
        blocks = tree.blocks(first, levels, groups[first], leaf)
        if wanted[1] or wanted[2]:
            outers.append(Outer(blocks, grad_node, tree.x, grads[1], NODES, bias=grads[2]))
        if wanted[3]:
            sides = tree.node_sides
            outers.append(Outer(blocks, node_amplitude, grad_y, grads[3], NODES, 1, sides, logits=call.logits))
    fill(outers)
    if W:
        grads[8:] = (g.sum(1, keepdim=True) if w else None for g, w in zip(grads[4:8], wanted[8:], strict=True))
    return grads


def _learn(call: Call, last: Blocks, groups: dict[int, Groups]) -> tuple[Tensor, ...]:
    """Gradients of the logits, amplitudes of the nodes, gradients of the hidden neurons and their amplitudes."""
    tree, logits, hidden = call.tree, call.logits, call.hidden
    T, K, D, W = tree.T, tree.K, tree.D, tree.W
    gain, leaf_gain, bias_gain = torch.empty_like(logits), torch.empty_like(hidden), logits.new_empty(T, K, 1)
    nodes = Rows(logits, tree.node_out, tree.node_sides) if tree.node_sides and D else None
    leaves = Rows(hidden, tree.w2, tree.leaf_sides) if W else None
    gains(last, call.grad_y, nodes, leaves, tree.b2, (gain, leaf_gain, bias_gain))
    gradient = call.gradient if D else 0
    other = walk(call, groups) if gradient in (SAMPLED, EXACT) else gain
    made = tuple(torch.empty_like(t) for t in (logits, logits, hidden, hidden))
    given = gain if call.grad_logits is None else call.grad_logits
    launch(
        learn_path,
        (divided(T * K, SMALLEST),),
        SHORT,
        (
            *(logits, gain, hidden, leaf_gain, hidden if tree.mask is None else tree.mask, bias_gain, other),
            *(call.leaf if call.levels is None else call.levels, given, *made, T * K),
        ),
        {
            "DEPTH": D,
            "WIDTH": W,
            "NODE_SIDES": tree.node_sides,
            "LEAF_SIDES": tree.leaf_sides,
            "ACTIVATION": tree.activation,
            "GRADIENT": gradient,
            "MASKED": tree.mask is not None,
            "GIVEN": call.grad_logits is not None,
            "BT": SMALLEST,
            "P": power_of_two(max(D, 1)),
            "C": columns(W),
        },
    )
    return made
