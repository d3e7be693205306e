"""Pretrained neurons, which of them matter, and what they should put out where the others are missing."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastff.hf.replace import FeedForwardFunction
from fastff.ops import activate

RIDGE = 1e-3  # of the mean square of a neuron's value


@dataclass(frozen=True)
class Neurons:
    """Those of a function without gate: output row n times activation(w1_n . x + b1_n).

    Attributes:
        w1, b1, w2: (N, in), (N,) and (N, out), float32.
        activation: a key of `fastff.ops.ACTIVATIONS`.
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    activation: str

    @classmethod
    def of(cls, function: FeedForwardFunction, model: nn.Module) -> "Neurons | None":
        """Those of a function in `model`; None where a gate multiplies, or the activation is none of ours."""
        if len(function.linears) != 2 or function.activation is None:
            return None
        up, down = (_matrix(model.get_submodule(name)) for name in function.linears)
        return cls(up[0], up[1], down[0].T, function.activation)

    def logits(self, x_TI: Tensor) -> Tensor:
        """(T, N)."""
        return F.linear(x_TI, self.w1, self.b1)

    def most_used(self, z_TN: Tensor, scale_O: Tensor, count: int, rest_TO: Tensor | None = None) -> Tensor:
        """The `count` neurons whose part of the output varies most on some tokens, or those that are most like it.

        Args:
            z_TN: logits of the tokens.
            scale_O: by which features of the output are divided, so that each counts alike.
            count: at most all are returned.
            rest_TO: what is left to be explained, if not the whole output.
        """
        h_TN = activate(z_TN, self.activation)
        if rest_TO is None:
            score_N = h_TN.var(0) * (self.w2 / scale_O).square().sum(1)
        else:
            h_TN, rest_TO = h_TN - h_TN.mean(0), (rest_TO - rest_TO.mean(0)) / scale_O
            score_N = (h_TN.T @ rest_TO).square().sum(1) / h_TN.square().sum(0).clamp_min(1e-6)
        return score_N.topk(min(count, len(self.b1))).indices


def values(z_TN: Tensor, activation: str, sides: int) -> Tensor:
    """What neurons multiply their output rows by, (T, N * sides): relu(-z) and relu(z) where there are two."""
    if sides == 1:
        return activate(z_TN, activation)
    return torch.stack([F.relu(-z_TN), F.relu(z_TN)], dim=-1).flatten(1)


def fit(features_TF: Tensor, y_TO: Tensor) -> tuple[Tensor, Tensor]:
    """The output rows (F, O) and the bias (O,) that bring features @ rows + bias nearest to y, with a little ridge."""
    mean_F, mean_O = features_TF.mean(0), y_TO.mean(0)
    centred_TF = features_TF - mean_F
    square_FF = centred_TF.T @ centred_TF
    square_FF.diagonal().add_(RIDGE * square_FF.diagonal().mean() + 1e-9)
    rows_FO = torch.linalg.solve(square_FF, centred_TF.T @ (y_TO - mean_O))
    return rows_FO, mean_O - mean_F @ rows_FO


def _matrix(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of a linear layer, also of GPT-2's, whose weight lies the other way round."""
    layer: Any = linear
    weight: Tensor = layer.weight.detach().float()
    if not isinstance(linear, nn.Linear):
        weight = weight.T
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
