"""The indexed feedforward: the definition, composed of conditional matrix multiplications."""

import torch
from torch import Tensor

from fastff.ops.activation import activate
from fastff.ops.cmm import cmm_in, cmm_out


def is_gated(w1: Tensor, w2: Tensor) -> bool:
    """Whether the neurons of experts w1 (E, H, I) and w2 (E, W, O) are gated: H = 2 W, two rows in for one out."""
    return w2.dim() == 3 and w1.shape[1] == 2 * w2.shape[1]


def indexed_feedforward(
    x: Tensor,
    index: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor | None,
    *,
    activation: str,
    gate: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """As `fastff.ops.indexed_feedforward`; mask (T, S, W) is a factor of each hidden neuron.

    With w2 (E, W, 2, O) the neurons are two-sided: relu(-z) times row 0 and relu(z) times row 1, without `activation`.
    """
    W = w2.shape[1]
    # A product with 1 rather than an embedding: its gradient sums low precision in float32.
    b1_TSW = cmm_out(x.new_ones(index.numel(), 1, 1), b1.unsqueeze(1), index.reshape(-1, 1)).view(
        *index.shape, b1.shape[1]
    )
    z_TSW = cmm_in(x, w1, index) + b1_TSW  # gated: (T, S, 2 W)
    two_sided = w2.dim() == 4
    if two_sided:
        hidden_TSW = torch.stack([torch.relu(-z_TSW), torch.relu(z_TSW)], -1)
    else:
        hidden_TSW = activate(z_TSW[..., :W], activation)
        if is_gated(w1, w2):
            hidden_TSW = hidden_TSW * z_TSW[..., W:]
    if mask is not None:
        hidden_TSW = hidden_TSW * (mask.unsqueeze(-1) if two_sided else mask)
    if two_sided:
        hidden_TSW, w2 = hidden_TSW.flatten(-2), w2.flatten(1, 2)  # as twice as many neurons
    gate_TS1 = (x.new_ones(index.shape) if gate is None else gate).unsqueeze(-1)
    y = cmm_out(hidden_TSW * gate_TS1, w2, index)
    return y if b2 is None else y + cmm_out(gate_TS1, b2.unsqueeze(1), index)
