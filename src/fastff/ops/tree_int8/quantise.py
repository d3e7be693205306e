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
    given = {"node_weight": node_weight, "node_bias": node_bias, "node_out": node_out, "projection": projection}
    for part in (leaves, master):
        given |= {} if part is None else part._asdict()
    for name, weight in given.items():
        if weight is not None and not weight.is_meta and not weight.isfinite().all():
            raise ValueError(f"{name} must be finite to be quantised")
    ins, biases, outs = [node_weight.reshape(K * N, R)], [node_bias.flatten()], []
    sides = width = leaf_sides = biased = neurons = gated = 0
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
    dense: list[Tensor] = []
    if projection is not None:
        dense.append(F.pad(projection.detach(), (0, 0, 0, padded(R) - R)))
    if master is not None:
        neurons = len(master.w1)
        dense.append(F.pad(master.w1.detach(), (0, 0, 0, padded(neurons) - neurons)))
        outs.append(master.w2)
    in_rows, in_scale = quantise_rows(torch.cat(ins))
    out_rows, out_scale = quantise_rows(torch.cat(outs))
    out_features = outs[0].shape[1]
    blocks = out_rows.view(len(out_rows), -1, COLUMN_BLOCK).transpose(0, 1)  # (C, rows, 64)
    own = len(out_rows) - neurons
    fours = F.pad(blocks[:, own:], (0, 0, 0, -neurons % 4), value=ZERO_POINT).unflatten(1, (-1, 4)).transpose(2, 3)
    rank = 0 if projection is None else R
    shape = Int8Shape(K, depth, sides, width, leaf_sides, biased, out_features, rank, neurons, gated)
    bias = torch.cat(biases).detach().float()
    tree = Int8Tree(_placed(in_rows), in_scale, bias, _placed(blocks[:, :own]), out_scale)
    if dense:
        dense_bias = out_scale.new_empty(0) if master is None else master.b1.detach().float()
        rows, scale = quantise_rows(torch.cat(dense))
        rows = rows.view(-1, COLUMN_BLOCK, rows.shape[1] // 4, 4).transpose(1, 2)
        tree = Int8Tree(*tree[:5], _placed(rows), scale, dense_bias, _placed(fours))
    return tree, shape
