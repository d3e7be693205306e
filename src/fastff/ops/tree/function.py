"""The tree family as one function: descend, contribute along the path, run the indexed leaf.

P1's hard FFF is a tree whose nodes do not contribute, P2's neuron tree one without leaves (its last level of nodes is
the leaves of one neuron), `TreeFeedForward` the general case. Shapes: T tokens, K trees, D levels, N = 2^D - 1 nodes,
L = 2^D leaves, W leaf width, S = 1 or 2 output rows a node.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastff.ops.activation import activation_code
from fastff.ops.autograd import may_learn
from fastff.ops.backend import backend_of
from fastff.ops.checks import check_reverse_mode, tree_depth
from fastff.ops.tree import reference
from fastff.ops.tree.op import GRADIENTS
from fastff.ops.tree.reference import Leaves, Path

_NOTHING = (None,) * 4
_GRADIENT = {name: i for i, name in enumerate(GRADIENTS)}


def tree_feedforward(
    x: Tensor,
    node_weight: Tensor,
    node_bias: Tensor,
    node_out: Tensor | None = None,
    leaves: Leaves | None = None,
    base: Leaves | None = None,
    *,
    activation: str = "gelu",
    gradient: str = "exact",
    dropout: float = 0.0,
    sparse: bool = False,
) -> tuple[Tensor, Path]:
    """Sum over K trees of what the nodes on the path contribute and what the leaf at its end puts out.

    Args:
        x: (T, I), floating point.
        node_weight, node_bias: (K, N, I) and (K, N), the decisions: right where the logit z is >= 0, else left.
        node_out: (K, N, S, O), or (K, N, O) for S = 1, or None. S = 1: a node on the path adds activation(z) times its
            row. S = 2: it adds relu(-z) times row 0 and relu(z) times row 1, of which one is zero.
        leaves: the leaves' feedforward networks, with one output row or two a neuron, or gated, and output biases
            or none, or None. Gated ones run on the reference on GPUs.
        base: what is added to every leaf of a tree, with 1 in place of L, or None.
        activation: a key of `fastff.ops.ACTIVATIONS`, for neurons with one output row.
        gradient: of the decisions. "exact": straight-through, D + 1 leaves a token and tree in training;
            "sampled": of one level a token and tree, drawn evenly, times D: unbiased, 2 leaves; "chosen": without the
            other side: 1 leaf; "none", the true gradient of the hard function: decisions learn only by what their node
            contributes: 1 leaf.
        dropout: probability with which a leaf's hidden neuron is left out.
        sparse: whether gradients of weights are sparse tensors that hold the nodes and leaves on paths alone, as those
            of `nn.Embedding(sparse=True)`; only the compiled kernels make them, and not under `torch.compile`, whose
            graphs hold no sparse tensor.

    Returns:
        y (T, O) and the path.

    Raises:
        ValueError, TypeError: unknown gradient or activation, neither `node_out` nor `leaves` given, shapes or dtypes
            that do not fit together (RuntimeError from the compiled kernels).
        NotImplementedError: within forward-mode differentiation.
    """
    check_reverse_mode()
    if gradient not in _GRADIENT:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
    code = activation_code(activation)
    if node_out is None and leaves is None:
        raise ValueError("node_out or leaves must be given: a tree without both has no output")
    inputs = (x, node_weight, node_bias, node_out, *(leaves or _NOTHING), *(base or _NOTHING))
    learns = may_learn(*inputs)
    levels = mask = None
    if not learns:
        gradient = "none"
    elif gradient == "sampled":
        depth = tree_depth(node_weight.shape[1])
        if depth:
            levels = torch.randint(depth, (x.shape[0], node_weight.shape[0]), device=x.device)
        else:
            gradient = "none"  # no level to draw
    if dropout and leaves is not None:
        mask = F.dropout(x.new_ones(x.shape[0], node_weight.shape[0], leaves.w2.shape[2]), dropout)
    backend = backend_of(x)
    if backend == "reference" or (backend == "triton" and leaves is not None and leaves.gated):
        return reference.tree_feedforward(
            x,
            node_weight,
            node_bias,
            node_out,
            leaves,
            base,
            activation=activation,
            gradient=gradient,
            levels=levels,
            mask=mask,
        )
    if not learns and mask is None:
        weights = [t for t in inputs[1:] if t is not None]
        y, logits, leaf = torch.ops.fastff.tree_infer.default(x, weights, code)
        return y, Path(logits, leaf)
    sparse = sparse and backend == "cpu" and not torch.compiler.is_compiling()
    y, logits, leaf, _ = torch.ops.fastff.tree.default(*inputs, mask, levels, code, _GRADIENT[gradient], sparse)
    return y, Path(logits, leaf)
