"""The tree family on GPUs: the kernels of `fastff.ops.triton`, put together.

A tree is cut into blocks of up to six levels, 63 nodes. Tokens that reach the same block are brought together, and a
tile of them multiplies all rows of the block on the matrix units: more operations than a path has, on units that are
many times as fast, and rows are read once a tile instead of once a token. A row's bits do not depend on the batch: each
slot is a row of products of fixed shape, whatever the others are.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastff.ops.checks import check_choice, check_tensor, tree_depth
from fastff.ops.tree.checks import check_count, check_tree
from fastff.ops.tree.plan import plan_of
from fastff.ops.triton.blocks import (
    Blocks,
    Rows,
    add_trees,
    gains,
    hidden_neurons,
    outer,
    spread,
    sum_constants,
    with_base,
)
from fastff.ops.triton.config import config
from fastff.ops.triton.group import Groups, by_tree, sort_slots
from fastff.ops.triton.kernels.alone import pass_alone
from fastff.ops.triton.kernels.columns import LEAVES, NODES, SMALLEST
from fastff.ops.triton.kernels.descend import descend_block
from fastff.ops.triton.kernels.learn import learn_path
from fastff.ops.triton.kernels.walk import walk_block, walk_leaves
from fastff.ops.triton.launch import columns, divided, entries_of_tile, on_device, power_of_two, rows_of_tile

SAMPLED, EXACT = 2, 3  # of GRADIENTS
FEW = 256  # slots
BUSY = 128  # programs that keep a GPU busy where each one's time is that of its way


class _Tree:
    """Tokens and a tree, checked and contiguous, the base added to its leaves."""

    def __init__(self, x: Tensor, *weights: Any, mask: Tensor | None, activation: int) -> None:
        check_tree(x, weights, mask, activation)
        self.x, self.mask, self.activation = x.contiguous(), None if mask is None else mask.contiguous(), activation
        whole: list[Any] = [None if t is None else t.contiguous() for t in weights]
        self.node_weight, self.node_bias, self.node_out, *leaves = whole[:7]
        if whole[7] is not None:
            with on_device(x):
                leaves = with_base(leaves, whole[7:])
        self.w1, self.b1, self.w2, self.b2 = leaves
        self.T, self.K = x.shape[0], self.node_weight.shape[0]
        self.D = tree_depth(self.node_weight.shape[1])
        self.W = 0 if self.w1 is None else self.w1.shape[2]
        self.node_sides = 0 if self.node_out is None else 1 if self.node_out.dim() == 3 else self.node_out.shape[2]
        self.leaf_sides = 0 if self.w2 is None else 2 if self.w2.dim() == 5 else 1
        self.plan = plan_of(self.D, self.W, config().levels)

    @property
    def out_features(self) -> int:
        return (self.w2 if self.node_out is None else self.node_out).shape[-1]

    def blocks(self, first: int, levels: int, groups: Groups, way: Tensor) -> Blocks:
        return Blocks(groups, self.K << first, self.K, self.D, first, levels, way)

    def sort(self, level: int, way: Tensor, **walkers: Any) -> Groups:
        """Slots, or their walkers, sorted by the node of `level` on their way."""
        return sort_slots(way, self.K << level, trees=self.K, level=level, below=self.D - level, **walkers)


def tree(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fastff::tree`."""
    *weights, mask, _levels, activation, _gradient, _sparse = inputs
    return _forward(_Tree(x, *weights, mask=mask, activation=activation))


def tree_infer(x: Tensor, weights: list[Tensor], activation: int) -> tuple[Tensor, Tensor, Tensor]:
    """`fastff::tree_infer`."""
    check_count(weights)
    node_weight, node_bias, *rest = weights
    node_out = rest.pop(0) if len(rest) % 4 else None
    whole = (node_weight, node_bias, node_out, *rest, *[None] * (8 - len(rest)))
    return _forward(_Tree(x, *whole, mask=None, activation=activation))[:3]


def _forward(tree: _Tree) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, T, K, D, plan = tree.x, tree.T, tree.K, tree.D, tree.plan
    y = x.new_empty(T, tree.out_features)
    logits = x.new_empty(T, K, D, dtype=torch.float32)
    leaf = x.new_empty(T, K, dtype=torch.int64) if D else x.new_zeros(T, K, dtype=torch.int64)
    hidden = x.new_empty(T, K, tree.W, dtype=torch.float32)
    if T == 0:
        return y, logits, leaf, hidden
    nodes = Rows(logits, tree.node_out, tree.node_sides) if tree.node_sides else None
    leaves = Rows(hidden, tree.w2, tree.leaf_sides) if tree.W else None
    with on_device(x):
        if T * K <= FEW:
            _pass_alone(tree, logits, leaf, hidden, nodes, leaves, y)
            return y, logits, leaf, hidden
        groups = {0: by_tree(T, K, leaf)}
        for first, levels in plan.blocks:
            here = groups[first] = groups.get(first) or tree.sort(first, leaf)
            reached = plan.reaches and first == plan.first
            sizes = config().gains if reached else config().products
            descend_block[here.launches,](
                *(x, tree.node_weight, tree.node_bias, *((tree.w1, tree.b1) if reached else (x, x))),
                *(here.tiles, here.order, logits, leaf, hidden, here.slots, K, x.shape[1]),
                **{"FIRST": first, "LEVELS": levels, "DEPTH": D, "WIDTH": tree.W if reached else 0},
                **{"P": entries_of_tile(tree.W), "C": columns(1 << levels), "CL": rows_of_tile(tree.W << levels)},
                **{"BT": config().tile, "BI": sizes.features(x.dtype), "ORDER": here.kind, **sizes.options},
            )
        last = tree.blocks(plan.first, plan.last, groups.get(plan.first) or tree.sort(plan.first, leaf), leaf)
        if tree.W and not plan.reaches:
            hidden_neurons(last, x, tree.w1, tree.b1, hidden)
        spread(last, y, nodes, leaves, activation=tree.activation, bias=tree.b2, mask=tree.mask)
    return y, logits, leaf, hidden


def _pass_alone(
    tree: _Tree, logits: Tensor, leaf: Tensor, hidden: Tensor, nodes: Rows | None, leaves: Rows | None, y: Tensor
) -> None:
    """The forward of a few slots, in one kernel: sorting them would take longer than reading rows for each alone."""
    x, T, K, W, plan = tree.x, tree.T, tree.K, tree.W, tree.plan
    last = tree.blocks(plan.first, plan.last, by_tree(T, K, leaf), leaf)
    masked = tree.mask is not None
    constants = sum_constants(last, nodes, leaves, tree.activation, masked=masked, bias=tree.b2 is not None)
    parts = y if K == 1 else y.new_empty(T, K, y.shape[1], dtype=torch.float32)
    BO, most = config().sums.features(x.dtype), max((levels for _, levels in plan.blocks), default=0)
    share = divided(divided(y.shape[1], BO), max(1, BUSY // (T * K))) * BO
    sizes = config().alone if constants["LEAF_COLUMNS"] <= constants["CL"] else config().products
    weights = (tree.node_weight, tree.node_bias, tree.node_out, tree.w1, tree.b1, tree.w2, tree.b2, tree.mask)
    pass_alone[T * K, divided(y.shape[1], share)](
        *(x, *(x if t is None else t for t in weights), logits, leaf, hidden, parts, K, x.shape[1], y.shape[1], share),
        **{**last.constants, **constants, "BLOCKS": tuple(plan.blocks), "REACHED": plan.reaches},
        **{"CH": rows_of_tile(W << plan.last) if plan.reaches else columns(W << plan.last), "C": columns(1 << most)},
        **{"BI": sizes.features(x.dtype), "BO": BO, **sizes.options},
    )
    if parts is not y:
        add_trees(parts, y, None)


def tree_backward(grad_y: Tensor, grad_logits: Tensor | None, x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """`fastff::tree_backward`."""
    *weights, mask, logits, leaf, hidden, levels, activation, gradient, needs, rows = inputs
    if rows:
        raise ValueError("rows must be false: sparse gradients are made by the CPU kernels alone")
    learning = (x, *weights)
    wanted = [bool(needs >> i & 1) and t is not None for i, t in enumerate(learning)]
    tree = _Tree(x, *weights, mask=mask, activation=activation)
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
        call = _Call(tree, gradient, *passed)  # type: ignore[arg-type]
        with on_device(x):
            grads = _backward(call, wanted)
    else:
        grads = [
            torch.zeros_like(t, memory_format=torch.contiguous_format) if w else None
            for t, w in zip(learning, wanted, strict=True)
        ]
    nothing, index = grad_y.new_empty(0), grad_y.new_empty(0, dtype=torch.int64)
    return (*(g if g is not None and w else nothing for g, w in zip(grads, wanted, strict=True)), index, index)


class _Call(NamedTuple):
    """What a backward knows; names as in the schema."""

    tree: _Tree
    gradient: int
    grad_y: Tensor
    grad_logits: Tensor | None
    logits: Tensor
    leaf: Tensor
    hidden: Tensor
    levels: Tensor | None


def _backward(call: _Call, wanted: list[bool]) -> list[Tensor | None]:
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
    for first, levels in plan.blocks:
        blocks = tree.blocks(first, levels, groups[first], leaf)
        if wanted[1] or wanted[2]:
            outer(blocks, grad_node, tree.x, grads[1], NODES, bias=grads[2])
        if wanted[3]:
            outer(blocks, node_amplitude, grad_y, grads[3], NODES, sides=tree.node_sides, logits=call.logits)
    if W:
        w1, b1, w2, b2 = grads[4:8] = [torch.empty_like(t) for t in (tree.w1, tree.b1, tree.w2, tree.b2)]
        if any(wanted[i] for i in (4, 5, 8, 9)):
            outer(last, grad_hidden, tree.x, w1, LEAVES, width=W, bias=b1)
        if wanted[6] or wanted[10]:
            outer(last, leaf_amplitude, grad_y, w2, LEAVES, width=W, sides=tree.leaf_sides, logits=call.hidden)
        if wanted[7] or wanted[11]:
            outer(last, torch.ones_like(leaf, dtype=torch.float32).unsqueeze(-1), grad_y, b2, LEAVES)
        grads[8:] = (g.sum(1, keepdim=True) if w else None for g, w in zip(grads[4:8], wanted[8:], strict=True))
    return grads


def _learn(call: _Call, last: Blocks, groups: dict[int, Groups]) -> tuple[Tensor, ...]:
    """Gradients of the logits, amplitudes of the nodes, gradients of the hidden neurons and their amplitudes."""
    tree, logits, hidden = call.tree, call.logits, call.hidden
    T, K, D, W = tree.T, tree.K, tree.D, tree.W
    gain, leaf_gain, bias_gain = torch.empty_like(logits), torch.empty_like(hidden), logits.new_empty(T, K, 1)
    nodes = Rows(logits, tree.node_out, tree.node_sides) if tree.node_sides and D else None
    leaves = Rows(hidden, tree.w2, tree.leaf_sides) if W else None
    gains(last, call.grad_y, nodes, leaves, tree.b2, (gain, leaf_gain, bias_gain))
    gradient = call.gradient if D else 0
    other = _walk(call, groups) if gradient in (SAMPLED, EXACT) else gain
    made = tuple(torch.empty_like(t) for t in (logits, logits, hidden, hidden))
    given = gain if call.grad_logits is None else call.grad_logits
    learn_path[divided(T * K, SMALLEST),](
        *(logits, gain, hidden, leaf_gain, hidden if tree.mask is None else tree.mask, bias_gain, other),
        *(call.leaf if call.levels is None else call.levels, given, *made, T * K),
        **{"DEPTH": D, "WIDTH": W, "NODE_SIDES": tree.node_sides, "LEAF_SIDES": tree.leaf_sides},
        **{"ACTIVATION": tree.activation, "GRADIENT": gradient, "MASKED": tree.mask is not None},
        **{"GIVEN": call.grad_logits is not None, "BT": SMALLEST, "P": power_of_two(max(D, 1))},
        **{"C": columns(W)},
    )
    return made


def _walk(call: _Call, groups: dict[int, Groups]) -> Tensor:
    """What the sides not taken would have gained: (T, K, D), or (T, K, 1) of the level drawn."""
    tree, drawn = call.tree, call.gradient == SAMPLED
    T, K, D, I, O = tree.T, tree.K, tree.D, tree.x.shape[1], call.grad_y.shape[1]
    walkers = 1 if drawn else D
    worth = call.logits.new_empty(T, K, walkers)
    end = torch.empty_like(worth, dtype=torch.int64)
    levels = call.leaf if call.levels is None else call.levels
    node_out = tree.node_weight if tree.node_out is None else tree.node_out

    def pass_block(first: int, count: int, here: Groups, place: Tensor, *, begin: bool) -> None:
        walk_block[here.launches,](
            *(tree.x, tree.node_weight, tree.node_bias, call.grad_y, node_out, here.tiles, here.order),
            *(place, call.leaf, levels, worth, end, here.slots, K, I, O),
            **{"FIRST": first, "LEVELS": count, "DEPTH": D, "SIDES": tree.node_sides, "BEGIN": begin},
            **{"ACTIVATION": tree.activation, "WALKERS": walkers, "DRAWN": drawn, "ORDER": here.kind},
            **{"BT": config().tile, "C": columns(1 << count), "BI": config().gains.features(tree.x.dtype)},
            **config().gains.options,
        )

    for first, count in tree.plan.blocks:
        if first:
            come = tree.sort(first, end, walkers=walkers, levels=call.levels if drawn else None, every=False)
            pass_block(first, count, come, end, begin=False)
        pass_block(first, count, groups[first], call.leaf, begin=True)
    if tree.W:
        first, count = tree.plan.first, tree.plan.last
        here, neurons = tree.sort(first, end, walkers=walkers), tree.W << count
        walk_leaves[here.launches,](
            *(tree.x, tree.w1, tree.b1, call.grad_y, tree.w2, tree.b2, here.tiles, here.order),
            *(end, worth, here.slots, K, I, O),
            **{"FIRST": first, "LEVELS": count, "DEPTH": D, "WIDTH": tree.W, "SIDES": tree.leaf_sides},
            **{"ACTIVATION": tree.activation, "WALKERS": walkers, "COLUMNS": neurons, "ORDER": here.kind},
            **{
                "BT": config().tile,
                "C": columns(neurons),
                "CB": columns(1 << count),
                "BI": config().gains.features(tree.x.dtype),
                **config().gains.options,
            },
        )
    return worth
