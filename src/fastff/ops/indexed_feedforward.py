"""The indexed feedforward: each row of the input goes through the experts that it names (FFF leaves, MoE experts)."""

import torch.nn.functional as F
from torch import Tensor

from fastff.ops.activation import activate
from fastff.ops.cmm import cmm_in, cmm_out


def indexed_feedforward(
    x: Tensor,
    index: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    activation: str = "relu",
    gate: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Sum over the S experts that a token names of gate * (activation(x w1^T + b1) w2 + b2).

    Args:
        x: (T, I), floating point.
        index: (T, S) int64, values in [0, E).
        w1, b1: (E, W, I) and (E, W), dtype of `x`.
        w2, b2: (E, W, O) and (E, O), dtype of `x`. All weights hold one contiguous row a neuron.
        activation: a key of `fastff.ops.ACTIVATIONS`.
        gate: (T, S), the weight of each expert; 1 if None. Its gradient is the output of the expert, so a gate of
            value 0 measures what an expert would have contributed.
        dropout: probability with which a hidden neuron is left out (0: none).

    Returns:
        (T, O).
    """
    # A product with 1 rather than an embedding: its gradient sums low precision in float32.
    b1_TSW = cmm_out(x.new_ones(index.numel(), 1, 1), b1.unsqueeze(1), index.reshape(-1, 1)).view(
        *index.shape, b1.shape[1]
    )
    hidden_TSW = activate(cmm_in(x, w1, index) + b1_TSW, activation)
    if dropout:
        hidden_TSW = F.dropout(hidden_TSW, dropout)
    gate_TS1 = (x.new_ones(index.shape) if gate is None else gate).unsqueeze(-1)
    return cmm_out(hidden_TSW * gate_TS1, w2, index) + cmm_out(gate_TS1, b2.unsqueeze(1), index)
