"""The indexed feedforward: the definition, composed of conditional matrix multiplications."""

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
    activation: str,
    gate: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """As `fastff.ops.indexed_feedforward`; mask (T, S, W) is a factor of each hidden neuron."""
    # A product with 1 rather than an embedding: its gradient sums low precision in float32.
    b1_TSW = cmm_out(x.new_ones(index.numel(), 1, 1), b1.unsqueeze(1), index.reshape(-1, 1)).view(
        *index.shape, b1.shape[1]
    )
    hidden_TSW = activate(cmm_in(x, w1, index) + b1_TSW, activation)
    if mask is not None:
        hidden_TSW = hidden_TSW * mask
    gate_TS1 = (x.new_ones(index.shape) if gate is None else gate).unsqueeze(-1)
    return cmm_out(hidden_TSW * gate_TS1, w2, index) + cmm_out(gate_TS1, b2.unsqueeze(1), index)
