"""From trees of float weights to trees in int8."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastff.ops.backend import extension
from fastff.ops.checks import tree_depth
from fastff.ops.tree.reference import Leaves
from fastff.ops.tree_int8.reference import COLUMN_BLOCK, ZERO_POINT, Int8Shape, Int8Tree, padded


def quantise_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(M, n) as bytes with a zero point of 128, (M, n padded) uint8, and scales (M,) float32, so that the largest
    magnitude of each row is 127; zeros where columns are padded.
    """
    rows = rows.detach().float()
    largest = rows.abs().amax(-1) if rows.shape[-1] else rows.new_zeros(len(rows))
    bytes_ = (rows * (127 / largest.clamp_min(1e-30)).unsqueeze(-1)).round() + ZERO_POINT
    return F.pad(bytes_, (0, padded(rows.shape[1]) - rows.shape[1]), value=ZERO_POINT).to(torch.uint8), largest / 127


def _placed(rows: Tensor) -> Tensor:
    """Where kernels reach them quickly."""
    quick = rows.is_cpu and not rows.is_meta and extension is not None
    return torch.ops.fastff.in_large_pages(rows) if quick else rows.contiguous()


def quantise_tree(
    node_weight: Tensor,
    node_bias: Tensor,
    node_out: Tensor | None = None,
    leaves: Leaves | None = None,
    projection: Tensor | None = None,
    master: Leaves | None = None,
) -> tuple[Int8Tree, Int8Shape]:
    """The weights of `tree_feedforward` in int8.

    Args:
        node_weight, node_bias, node_out, leaves: as of `tree_feedforward`; a base must have been added to the leaves.
        projection: (R, I), if nodes and leaves see LayerNorm(projection x).
        master: of a dense layer beside the trees, w1 (H, I), b1 (H,) and w2 (H, O), which sees x.

    Raises:
        ValueError: no complete tree, or a weight that is no number or infinite.
    """
    K, N, R = node_weight.shape
    depth = tree_depth(N)
    _check_finite(
        leaves, master, node_weight=node_weight, node_bias=node_bias, node_out=node_out, projection=projection
    )
    ins, biases, outs = [node_weight.reshape(K * N, R)], [node_bias.flatten()], []
    sides = width = leaf_sides = biased = gated = 0
    if node_out is not None:
        sides = node_out.shape[2] if node_out.dim() == 4 else 1
        outs.append(node_out.reshape(K * N * sides, node_out.shape[-1]))
    if leaves is not None:
        width, leaf_sides, gated = leaves.w2.shape[2], leaves.w2.dim() - 3, int(leaves.gated)
        ins.append(leaves.w1.flatten(0, 2))
        biases.append(leaves.b1.flatten())
        outs.append(leaves.w2.flatten(0, -2))
        if leaves.b2 is not None:
            biased = 1
            outs.append(leaves.b2.flatten(0, 1))
    tree, out_features, rank, neurons = _quantised(ins, biases, outs, projection, master)
    return tree, Int8Shape(K, depth, sides, width, leaf_sides, biased, out_features, rank, neurons, gated)


def quantise_experts(
    query_weight: Tensor,
    keys: Tensor,
    top_k: int,
    experts: Leaves,
    projection: Tensor | None = None,
    master: Leaves | None = None,
) -> tuple[Int8Tree, Int8Shape]:
    """Experts of one neuron each that product keys find (`PEER`), in int8; the keys keep float32.

    Args:
        query_weight: (heads, F, R) of what experts see, R = I without a projection.
        keys: (2, n, F / 2).
        top_k: experts that each head chooses.
        experts: w1 (n^2, 1, R), b1 (n^2, 1) and w2 (n^2, 1, O).
        projection, master: as of `quantise_tree`.

    Raises:
        ValueError: a weight that is no number or infinite.
    """
    heads, F_, _ = query_weight.shape
    _check_finite(experts, master, query_weight=query_weight, keys=keys, projection=projection)
    ins, outs = [experts.w1.flatten(0, 1)], [experts.w2.flatten(0, 1)]
    tree, out_features, rank, neurons = _quantised(ins, [experts.b1.flatten()], outs, projection, master)
    queries = query_weight.detach().flatten(0, 1)
    rows, scale = _interleaved(F.pad(queries, (0, 0, 0, padded(len(queries)) - len(queries))))
    shape = Int8Shape(heads * top_k, 0, 0, 1, 1, 0, out_features, rank, neurons, 0, heads, keys.shape[1], F_)
    return tree._replace(query_rows=rows, query_scale=scale, keys=keys.detach().float().contiguous()), shape


def _check_finite(*parts: Leaves | None, **given: Tensor | None) -> None:
    for part in parts:
        given |= {} if part is None else part._asdict()
    for name, weight in given.items():
        if weight is not None and not weight.is_meta and not weight.isfinite().all():
            raise ValueError(f"{name} must be finite to be quantised")


def _interleaved(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that every token has, a multiple of 64, in bytes: (rows / 64, columns / 4, 64, 4) and their scales."""
    bytes_, scale = quantise_rows(rows)
    return _placed(bytes_.view(-1, COLUMN_BLOCK, bytes_.shape[1] // 4, 4).transpose(1, 2)), scale


def _quantised(
    ins: list[Tensor], biases: list[Tensor], outs: list[Tensor], projection: Tensor | None, master: Leaves | None
) -> tuple[Int8Tree, int, int, int]:
    """Rows in and out, and what all tokens pass; also the output features, the rank, and the master leaf's neurons."""
    neurons, rank = 0 if master is None else len(master.w1), 0 if projection is None else len(projection)
    dense = [(projection, rank), (None if master is None else master.w1, neurons)]
    if master is not None:
        outs = [*outs, master.w2]
    in_rows, in_scale = quantise_rows(torch.cat(ins))
    out_rows, out_scale = quantise_rows(torch.cat(outs))
    blocks = out_rows.view(len(out_rows), -1, COLUMN_BLOCK).transpose(0, 1)  # (C, rows, 64)
    own = len(out_rows) - neurons
    bias = torch.cat(biases).detach().float()
    tree = Int8Tree(_placed(in_rows), in_scale, bias, _placed(blocks[:, :own]), out_scale)
    whole = [F.pad(rows.detach(), (0, 0, 0, padded(n) - n)) for rows, n in dense if rows is not None]
    if whole:
        fours = F.pad(blocks[:, own:], (0, 0, 0, -neurons % 4), value=ZERO_POINT).unflatten(1, (-1, 4)).transpose(2, 3)
        rows, scale = _interleaved(torch.cat(whole))
        dense_bias = out_scale.new_empty(0) if master is None else master.b1.detach().float()
        tree = Int8Tree(*tree[:5], rows, scale, dense_bias, _placed(fours))
    return tree, outs[0].shape[1], rank, neurons
