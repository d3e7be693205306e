"""The indexed feedforward: each row of the input goes through the experts that it names (FFF leaves, MoE experts)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastff.ops.activation import activation_code
from fastff.ops.autograd import may_learn
from fastff.ops.backend import backend_of
from fastff.ops.checks import check_reverse_mode
from fastff.ops.indexed import op, reference  # noqa: F401  (op registers the operator)


def indexed_feedforward(
    x: Tensor,
    index: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor | None = None,
    *,
    activation: str = "relu",
    gate: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Sum over the S experts that a token names of gate * (activation(x w1^T + b1) w2 + b2).

    With twice as many rows in w1 and b1 as in w2 neurons are gated (SwiGLU and the like, Shazeer 2020): neuron w is
    activation(z_w) * z_(W + w), z = x w1^T + b1. On GPUs such experts run on the reference.

    Args:
        x: (T, I), floating point.
        index: (T, S) int64, values in [0, E).
        w1, b1: (E, W, I) and (E, W), gated (E, 2 W, I) and (E, 2 W), dtype of `x`.
        w2, b2: (E, W, O) and (E, O), or None for no bias, dtype of `x`. All weights hold one contiguous row a neuron.
        activation: a key of `fastff.ops.ACTIVATIONS`.
        gate: (T, S), the weight of each expert; 1 if None. Its gradient is the output of the expert, so a gate of
            value 0 measures what an expert would have contributed.
        dropout: probability with which a hidden neuron is left out (0: none).

    Returns:
        (T, O).

    Raises:
        ValueError, TypeError, IndexError: unknown activation, shapes or dtypes that do not fit together, an index out
            of range (RuntimeError from the compiled kernels).
        NotImplementedError: within forward-mode differentiation.
    """
    check_reverse_mode()
    code = activation_code(activation)
    mask = F.dropout(x.new_ones(*index.shape, w2.shape[1]), dropout) if dropout else None
    backend = backend_of(x)
    if backend == "reference" or (backend == "triton" and reference.is_gated(w1, w2)):
        return reference.indexed_feedforward(x, index, w1, b1, w2, b2, activation=activation, gate=gate, mask=mask)
    arguments = (x, index, w1, b1, w2, b2, gate, mask)
    y, _ = torch.ops.fastff.indexed.default(*arguments, code, may_learn(*arguments))
    return y
