"""The dense feedforward layer, the baseline that every other layer is compared with."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastff.nn.layer import FeedForwardLayer, one_of, probability, uniform_, whole_number
from fastff.ops import activate


class FeedForward(FeedForwardLayer):
    """y = dropout(activation(x w1^T + b1)) w2 + b2, every neuron for every token.

    Gated, as in recent language models (SwiGLU with activation "silu", Shazeer 2020), neuron w is activation(z_w) *
    z_(W + w), z = x w1^T + b1.

    Args:
        in_features, out_features: sizes of the last dimension of input and output (out_features None: the same).
        width: hidden neurons.
        activation: a key of `fastff.ops.ACTIVATIONS`.
        gated: whether neurons are gated.
        dropout: probability in [0, 1) with which a hidden neuron is left out in training.
        device, dtype: of the parameters.

    Parameters: w1 (width, in), b1 (width,), gated (2 width, in) and (2 width,), w2 (width, out), b2 (out,): one row a
    neuron in both matrices, initialised uniform(+-1/sqrt(fan in)) as nn.Linear.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    w1: nn.Parameter
    b1: nn.Parameter
    w2: nn.Parameter
    b2: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        width: int,
        activation: str = "relu",
        gated: bool = False,
        dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, activation)
        self.width = whole_number("width", width, 1)
        self.dropout = probability("dropout", dropout)
        self.gated = one_of("gated", gated, (True, False))
        I, W, O = self.in_features, self.width, self.out_features
        H = 2 * W if self.gated else W
        self._register({"w1": (H, I), "b1": (H,), "w2": (W, O), "b2": (O,)}, device, dtype)

    def reset_parameters(self) -> None:
        """Initialise anew."""
        for p in (self.w1, self.b1):
            uniform_(p, self.in_features)
        for p in (self.w2, self.b2):
            uniform_(p, self.width)

    @property
    def training_width(self) -> int:
        return self.width

    @property
    def inference_width(self) -> int:
        return self.width

    def multiply_adds(self, *, training: bool) -> int:
        return self.width * ((1 + self.gated) * self.in_features + self.out_features)

    def forward_tokens(self, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        z = F.linear(x, w1, b1)
        hidden = activate(z[..., : self.width], self.activation)
        if self.gated:
            hidden = hidden * z[..., self.width :]
        return F.linear(F.dropout(hidden, self.dropout, self.training), w2.T, b2)

    def extra_repr(self) -> str:
        gated = ", gated=True" if self.gated else ""
        return f"{self.in_features}, {self.out_features}, width={self.width}, activation={self.activation!r}{gated}"
