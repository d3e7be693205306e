"""Trees in int8, or experts that product keys find: the definition, in PyTorch's own operations, for inference alone.

A row of weights is bytes q, unsigned with a zero point of 128, and one scale: w = scale * (q - 128). Tokens, what a
projection makes of them, and the factors of output rows are signed bytes in [-127, 127] with one scale a token, made
when they are there. Sums of products of bytes are whole numbers, exact in any order: bits depend on no batch and no
thread.

Shapes: T tokens, K trees, D levels, N = 2^D - 1 nodes, L = 2^D leaves, W leaf width, S output rows a node (0: nodes do
not contribute), R features that decisions and leaves see, M and P rows. Columns are padded to whole lines of 64 bytes.
With heads of product keys there are no decisions: each of the K is a choice, and all choose among the same L leaves.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastff.ops.activation import activate
from fastff.ops.product_keys.reference import product_keys
from fastff.ops.tree.reference import Path, nodes_above

COLUMN_BLOCK = 64  # columns of an output row that lie together
ZERO_POINT = 128


class Int8Tree(NamedTuple):
    """The weights of K trees, or of the experts among which heads choose.

    Attributes:
        in_rows, in_scale, in_bias: (M, R padded) uint8, (M,) and (M,) float32: the K * N nodes, tree after tree, then
            the K * L * W neurons of leaves; gated, of each leaf the W rows that are activated, then the W of gates.
        out_rows, out_scale: (C, P, 64) uint8 and (P + master,) float32, C blocks of 64 columns: the K * N * S rows of
            nodes, then those of leaf neurons, then, with leaf_bias, one for each of the K * L leaves; of the master
            leaf's rows the scales alone.
        dense_rows, dense_scale: rows that every token is multiplied with, (rows / 64, I padded / 4, 64, 4) uint8, four
            features of 64 rows together, and (rows,), or None: with a rank those of the projection P, as nodes and
            leaves then see LayerNorm(P x) in place of x, then those of the master leaf, both to a multiple of 64.
        dense_bias: (master,) float32, or None.
        master_rows: (C, master / 4, 64, 4) uint8, the output rows of the master leaf, four interleaved, or None.
        query_rows, query_scale: the heads * key_features rows that make queries of what leaves see, as dense_rows, or
            None.
        keys: (2, n, key_features / 2) float32, or None.
    """

    in_rows: Tensor
    in_scale: Tensor
    in_bias: Tensor
    out_rows: Tensor
    out_scale: Tensor
    dense_rows: Tensor | None = None
    dense_scale: Tensor | None = None
    dense_bias: Tensor | None = None
    master_rows: Tensor | None = None
    query_rows: Tensor | None = None
    query_scale: Tensor | None = None
    keys: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Those that are there."""
        return [t for t in self if t is not None]


class Int8Shape(NamedTuple):
    """What tensors do not say of themselves.

    Attributes:
        trees, depth: K and D; with heads the leaves that a token chooses, and 0.
        sides: S, output rows of a node.
        leaf_width, leaf_sides: W, and output rows of each of a leaf's neurons; 0 where a tree has no leaves.
        leaf_bias: 1 where leaves have output biases, else 0.
        out_features: O.
        rank: of the projection; 0: none.
        master: hidden neurons of the master leaf.
        gated: 1 where the neurons of leaves are gated, else 0.
        heads, keys, key_features: of product keys; 0: decisions find the leaves. A half has `keys` keys.
    """

    trees: int
    depth: int
    sides: int
    leaf_width: int
    leaf_sides: int
    leaf_bias: int
    out_features: int
    rank: int = 0
    master: int = 0
    gated: int = 0
    heads: int = 0
    keys: int = 0
    key_features: int = 0

    @property
    def leaves(self) -> int:
        """Of all trees or heads."""
        return self.keys**2 if self.heads else self.trees * 2**self.depth

    @property
    def nodes(self) -> int:
        return self.trees * (2**self.depth - 1)

    @property
    def in_rows(self) -> int:
        return self.nodes + self.leaves * self.leaf_width * (1 + self.gated)

    @property
    def out_rows(self) -> int:
        return self.nodes * self.sides + self.leaves * (self.leaf_width * self.leaf_sides + self.leaf_bias)


def padded(columns: int) -> int:
    """Columns of whole lines."""
    return -(-columns // COLUMN_BLOCK) * COLUMN_BLOCK


def quantise_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (T, n) as whole numbers in [-127, 127], the largest magnitude 127, float64, and the scale (T, 1), float32."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True)  # no number where x is none
    q = (x * torch.div(largest.new_tensor(127), largest.clamp_min(1e-30))).round().nan_to_num(0, 0, 0)
    return q.double(), largest / 127


def _shared_products(q: Tensor, scale: Tensor, rows: Tensor, row_scale: Tensor) -> Tensor:
    """Tokens q (T, n) with rows that all have, as `Int8Tree.dense_rows`: (T, rows padded), float32."""
    weight = rows.transpose(1, 2).flatten(2).flatten(0, 1)[:, : q.shape[1]].double() - ZERO_POINT
    return (q @ weight.T).float() * (scale * row_scale)


def tree_int8(x: Tensor, tree: Int8Tree, shape: Int8Shape, *, activation: str) -> tuple[Tensor, Path]:
    """As `fastff.ops.tree_int8`."""
    K, D, S, W, leaf_S, has_bias, O, rank, master, gated, heads, _, key_features = shape
    T, N, L = x.shape[0], 2**D - 1, 2**D
    q, scale = quantise_tokens(x)
    terms: list[tuple[Tensor, Tensor]] = []  # (T, ...): rows, and what they are multiplied with
    if tree.dense_rows is not None and tree.dense_scale is not None and tree.dense_bias is not None:
        z = _shared_products(q, scale, tree.dense_rows, tree.dense_scale)
        if master:
            first = padded(rank)
            hidden = activate(z[:, first : first + master] + tree.dense_bias, activation)
            terms.append(((shape.out_rows + torch.arange(master, device=x.device)).expand(T, -1), hidden))
        if rank:
            q, scale = quantise_tokens(F.layer_norm(z[:, :rank], (rank,)))
    R = q.shape[1]
    tree_K = torch.arange(K, device=x.device)

    def logits(row_TK: Tensor) -> Tensor:
        rows = tree.in_rows[row_TK, :R].double() - ZERO_POINT  # (T, K, R)
        sums = torch.einsum("tr,tkr->tk", q, rows).float()
        return sums * (scale * tree.in_scale[row_TK]) + tree.in_bias[row_TK]

    def amplitude(z: Tensor, sides: int) -> Tensor:
        return z.abs() if sides == 2 else activate(z, activation)

    gate: Tensor | None = None
    if tree.query_rows is not None and tree.query_scale is not None and tree.keys is not None:
        query = _shared_products(q, scale, tree.query_rows, tree.query_scale)[:, : heads * key_features]
        query = F.layer_norm(query.unflatten(1, (heads, key_features)), (key_features,))
        score, pair = product_keys(query, tree.keys, K // heads)
        gate, leaf = score.softmax(-1).flatten(1), pair.flatten(1)
        path, tree_K = Path(gate.unsqueeze(-1), leaf), torch.zeros_like(tree_K)  # all choose among the same leaves
    else:
        node = torch.zeros(T, K, dtype=torch.int64, device=x.device)
        found: list[Tensor] = []
        for _ in range(D):
            found.append(logits(tree_K * N + node))
            node = 2 * node + 1 + (found[-1] >= 0).long()
        leaf = node - N
        path = Path(torch.stack(found, -1) if found else scale.new_zeros(T, K, 0), leaf)

    if S:
        row = (tree_K * N).unsqueeze(-1) + nodes_above(leaf, D)
        row = 2 * row + (path.logits >= 0).long() if S == 2 else row
        terms.append((row, amplitude(path.logits, S)))
    for w in range(W):
        neuron = (tree_K * L + leaf) * W + w
        first = K * N + (tree_K * L + leaf) * (1 + gated) * W + w
        z = logits(first)
        row = 2 * neuron + (z >= 0).long() if leaf_S == 2 else neuron
        factor = amplitude(z, leaf_S)
        factor = factor * logits(first + W) if gated else factor
        terms.append((K * N * S + row, factor if gate is None else factor * gate))
    if has_bias:
        terms.append((K * (N * S + L * W * leaf_S) + tree_K * L + leaf, torch.ones_like(scale).expand(T, K)))
    row_TM, factor_TM = (torch.cat([t.flatten(1) for t in kind], 1) for kind in zip(*terms, strict=True))
    factor, scale = quantise_tokens(factor_TM * tree.out_scale[row_TM])
    rows = tree.out_rows.transpose(0, 1).flatten(1)  # (P, O padded)
    if tree.master_rows is not None:
        rows = torch.cat([rows, tree.master_rows.permute(1, 3, 0, 2).flatten(2).flatten(0, 1)])
    y = torch.stack([f @ (rows[r].double() - ZERO_POINT) for f, r in zip(factor, row_TM, strict=True)]) if T else None
    y = x.new_zeros(0, O) if y is None else (y.float() * scale)[:, :O]
    return y.to(x.dtype), path
