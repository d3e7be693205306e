"""The tree family as one PyTorch operator with a hand-written backward: schema, fake, autograd; the kernels are in
`csrc/` for CPUs, in `triton/` for GPUs. Shapes as in `function.py`; node_out may be (K, N, O), one row a node.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastff.ops.activation import activation_name
from fastff.ops.autograd import gradients_by_definition, register_autograd
from fastff.ops.backend import register_triton
from fastff.ops.checks import check_devices, tree_depth
from fastff.ops.tree import reference
from fastff.ops.tree.checks import split_weights

GRADIENTS = ("none", "chosen", "sampled", "exact")  # order of the kernels' enumeration
LEARNING = 12  # tensors that may have a gradient: x, decisions, node_out, leaves, base

_TENSORS = (
    "Tensor x, Tensor node_weight, Tensor node_bias, Tensor? node_out, "
    "Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2, "
    "Tensor? base_w1, Tensor? base_b1, Tensor? base_w2, Tensor? base_b2, Tensor? mask"
)
torch.library.define(
    "fastff::tree",
    f"({_TENSORS}, Tensor? levels, int activation, int gradient, bool sparse) -> "
    "(Tensor y, Tensor logits, Tensor leaf, Tensor hidden)",
)
# The forward where nothing learns. For one token a call's arguments cost more than the kernel: here they are few.
# Of `weights` those that are not None, in the order above (`split_weights`).
torch.library.define(
    "fastff::tree_infer", "(Tensor x, Tensor[] weights, int activation) -> (Tensor y, Tensor logits, Tensor leaf)"
)
torch.library.define(
    "fastff::tree_backward",
    f"(Tensor grad_y, Tensor? grad_logits, {_TENSORS}, Tensor logits, Tensor leaf, Tensor hidden, Tensor? levels, "
    "int activation, int gradient, int needs, bool rows) -> "
    f"({', '.join(['Tensor'] * (LEARNING + 2))})",
)


@torch.library.register_fake("fastff::tree")
def _(
    x: Tensor,
    node_weight: Tensor,
    node_bias: Tensor,
    node_out: Tensor | None,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_devices(x, node_weight, node_bias, node_out, w1, b1, w2, *(t for t in others if isinstance(t, Tensor)))
    T, K, D = x.shape[0], node_weight.shape[0], tree_depth(node_weight.shape[1])
    out = node_out if node_out is not None else w2
    assert out is not None
    W = 0 if w1 is None else w1.shape[2]
    return (
        x.new_empty(T, out.shape[-1]),
        x.new_empty(T, K, D, dtype=torch.float32),
        x.new_empty(T, K, dtype=torch.int64),
        x.new_empty(T, K, W, dtype=torch.float32),
    )


@torch.library.register_fake("fastff::tree_infer")
def _(x: Tensor, weights: list[Tensor], activation: int) -> tuple[Tensor, Tensor, Tensor]:
    check_devices(x, *weights)
    T, K, D = x.shape[0], weights[0].shape[0], tree_depth(weights[0].shape[1])
    _, _, node_out, _, _, w2, *_ = split_weights(weights)
    out = w2 if node_out is None else node_out
    assert out is not None
    return (
        x.new_empty(T, out.shape[-1]),
        x.new_empty(T, K, D, dtype=torch.float32),
        x.new_empty(T, K, dtype=torch.int64),
    )


@torch.library.register_vmap("fastff::tree_infer")  # PyTorch's own loop takes no list of tensors
def _(info: Any, dims: tuple[Any, ...], x: Tensor, weights: list[Tensor], activation: int) -> tuple[Any, ...]:
    def part(tensor: Tensor, dim: int | None, i: int) -> Tensor:
        return tensor if dim is None else tensor.select(dim, i)

    runs = []
    for i in range(info.batch_size):
        own = [part(w, dim, i) for w, dim in zip(weights, dims[1], strict=True)]
        runs.append(torch.ops.fastff.tree_infer.default(part(x, dims[0], i), own, activation))
    return tuple(torch.stack(outputs) for outputs in zip(*runs, strict=True)), (0, 0, 0)


@torch.library.register_fake("fastff::tree_backward")
def _(grad_y: Tensor, grad_logits: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
    tensors, needs, rows = inputs[:LEARNING], inputs[-2], inputs[-1]
    check_devices(grad_y, grad_logits, *(t for t in inputs if isinstance(t, Tensor)))
    if rows:
        raise ValueError("rows must be false where a graph is made: how many rows tokens pass is known in a run alone")
    grads = [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        if t is not None and needs >> i & 1
        else grad_y.new_empty(0)
        for i, t in enumerate(tensors)
    ]
    nothing = [grad_y.new_empty(0, dtype=torch.int64) for _ in range(2)]
    return (*grads, *nothing)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, logits, leaf, hidden = output
    *tensors, activation, gradient, sparse = inputs
    ctx.save_for_backward(*tensors, logits, leaf, hidden)
    ctx.options = activation, gradient, sparse
    ctx.mark_non_differentiable(leaf, hidden)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, grad_logits: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, mask, levels, logits, leaf, hidden = ctx.saved_tensors
    activation, gradient, sparse = ctx.options
    nothing = (None,) * 5  # mask, levels and the options
    if grad_y is None and grad_logits is None:
        return (*(None for _ in tensors), *nothing)
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled():  # the gradient of the gradient goes through the definition
        name, kind = activation_name(activation), GRADIENTS[gradient]
        definition = partial(_definition, activation=name, gradient=kind, levels=levels, mask=mask)
        grads = gradients_by_definition(definition, tensors, (grad_y, grad_logits), needs[: len(tensors)])
        return (*grads, *nothing)
    if grad_y is None:
        out = tensors[3] if tensors[3] is not None else tensors[6]
        grad_y = tensors[0].new_zeros(leaf.shape[0], out.shape[-1])
    bits = sum(1 << i for i, t in enumerate(tensors) if needs[i] and t is not None)
    *grads, nodes, leaves = torch.ops.fastff.tree_backward.default(
        grad_y, grad_logits, *tensors, mask, logits, leaf, hidden, levels, activation, gradient, bits, sparse
    )
    result = [g if bits >> i & 1 else None for i, g in enumerate(grads)]
    if sparse:
        for i, (grad, tensor) in enumerate(zip(result, tensors, strict=True)):
            if 1 <= i < 8 and grad is not None:
                result[i] = _rows(grad, nodes if i < 4 else leaves, tensor.shape)
    return (*result, *nothing)


def _rows(values: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    """A gradient that holds the listed (tree, node or leaf) alone, numbered through all trees, in ascending order."""
    place = torch.stack([index // shape[1], index % shape[1]])
    return torch.sparse_coo_tensor(place, values, shape, is_coalesced=True, check_invariants=False)


def _definition(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None, *blocks: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Output and logits."""
    leaves, base = (None if t[0] is None else reference.Leaves(*t) for t in (blocks[:4], blocks[4:]))
    y, path = reference.tree_feedforward(x, weight, bias, out, leaves, base, **options)
    return y, path.logits


register_autograd("tree", _backward, _save)
for name in ("tree", "tree_infer", "tree_backward"):
    register_triton(name, "fastff.ops.tree.triton", name)
