"""What the GPU kernels ask of the tensors of a tree, as the CPU kernels do."""

from collections.abc import Sequence

from torch import Tensor

from fastff.ops.activation import ACTIVATIONS
from fastff.ops.checks import check_choice, check_tensor, tree_depth

LEAVES = ("w1", "b1", "w2", "b2")


def check_tree(x: Tensor, weights: Sequence[Tensor | None], mask: Tensor | None, activation: int) -> None:
    """Raise a RuntimeError that names the argument unless x, the decisions, node_out, the leaves, the base and the mask
    fit together.
    """
    node_weight, node_bias, node_out, *blocks = weights
    assert node_weight is not None
    assert node_bias is not None
    leaves, base = blocks[:4], blocks[4:]
    if x.dim() != 2 or not x.shape[1]:
        raise RuntimeError(f"x must have 2 dimensions (T, I) and at least one feature, got {tuple(x.shape)}")
    if node_weight.dim() != 3 or not node_weight.shape[0]:
        raise RuntimeError(f"node_weight must have 3 dimensions (K, N, I), got {tuple(node_weight.shape)}")
    (T, I), (K, N, _) = x.shape, node_weight.shape
    try:
        L = 1 << tree_depth(N)
    except ValueError as error:
        raise RuntimeError(str(error)) from None
    if node_out is None and leaves[0] is None:
        raise RuntimeError("node_out or leaves must be given: a tree without both has no output")
    check_tensor("node_weight", node_weight, x, (K, N, I))
    check_tensor("node_bias", node_bias, x, (K, N))
    out = node_out
    if node_out is not None:
        if node_out.dim() not in (3, 4) or (node_out.dim() == 4 and node_out.shape[2] not in (1, 2)):
            raise RuntimeError(f"node_out must be (K, N, O) or (K, N, 1 or 2, O), got {tuple(node_out.shape)}")
        check_tensor("node_out", node_out, x, (K, N, *node_out.shape[2:]))
    if len({t is None for t in leaves[:3]}) > 1 or (leaves[0] is None and leaves[3] is not None):
        raise RuntimeError("w1, b1 and w2 must be given together, and b2 with them alone")
    if any(t is not None for t in base):
        if leaves[0] is None:
            raise RuntimeError("a base needs leaves")
        if any((own is None) != (shared is None) for own, shared in zip(leaves, base, strict=True)):
            raise RuntimeError("all of a base must be given together, base_b2 where there is a b2")
    width = 0
    if leaves[0] is not None:
        w1, _, w2, _ = leaves
        assert w1 is not None
        assert w2 is not None
        if w1.dim() != 4 or not w1.shape[2]:
            raise RuntimeError(f"w1 must have 4 dimensions (K, L, W, I) and neurons, got {tuple(w1.shape)}")
        if w2.dim() not in (4, 5):
            raise RuntimeError(f"w2 must be (K, L, W, O) or (K, L, W, 2, O), got {tuple(w2.shape)}")
        width, out = w1.shape[2], w2 if out is None else out
        rows = (2,) if w2.dim() == 5 else ()
        O = out.shape[-1]
        shapes = ((width, I), (width,), (width, *rows, O), (O,))
        for prefix, tensors, count in (("", leaves, L), ("base_", base, 1)):
            for name, tensor, shape in zip(LEAVES, tensors, shapes, strict=True):
                if tensor is not None:
                    check_tensor(prefix + name, tensor, x, (K, count, *shape))
    if mask is not None:
        check_tensor("mask", mask, x, (T, K, width))
    check_choice("activation", activation, len(ACTIVATIONS))


def split_weights(weights: Sequence[Tensor]) -> list[Tensor | None]:
    """The two tensors of the decisions, node_out, the four of leaves and the four of a base out of those that are
    there: which are, their dimensions and number tell.

    Raises:
        RuntimeError: no tree is made of so many.
    """
    decisions, rest = list(weights[:2]), list(weights[2:])
    contributes = len(rest) == 1 or (len(rest) > 1 and rest[1].dim() == 4)
    node_out, leaves = (rest[0], rest[1:]) if contributes else (None, rest)
    if not rest or len(leaves) not in (0, 3, 4, 6, 8):
        raise RuntimeError(
            "weights must be 2 of the decisions, 0 or 1 node_out, 0, 3 or 4 of leaves, and as many of a base, "
            f"got {len(weights)}"
        )
    parts: list[Tensor | None] = list(leaves)
    if len(leaves) % 4:  # without output biases
        parts = [*parts[:3], None, *parts[3:], *([None] if len(leaves) > 3 else [])]
    return [*decisions, node_out, *parts, *[None] * (8 - len(parts))]
