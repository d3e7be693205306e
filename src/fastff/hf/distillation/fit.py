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
    """Those of a function: output row n times activation(w1_n . x + b1_n), times w1'_n . x + b1'_n if they are gated.

    Attributes:
        w1, b1, w2: (N, G, in), (N, G) and (N, out), float32; G = 2 with a gate, first what is activated, otherwise 1.
        activation: a key of `fastff.ops.ACTIVATIONS`.
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    activation: str

    @classmethod
    def of(cls, name: str, function: FeedForwardFunction, model: nn.Module) -> "Neurons | None":
        """Those of the function called `name` in `model`; None if it computes something else."""
        if function.activation is None:
            return None
        *ups, (down_ON, bias_O) = (_matrix(model.get_submodule(linear)) for linear in function.linears)
        w1, b1 = (
            torch.cat(parts).unflatten(0, (-1, function.width)).transpose(0, 1) for parts in zip(*ups, strict=True)
        )
        found = cls(w1, b1, down_ON.T, function.activation)
        return found if found.gates == 1 else found._as_computed(model.get_submodule(name), bias_O)

    def _as_computed(self, module: nn.Module, bias_O: Tensor) -> "Neurons | None":
        """With that of two rows first which `module` activates: told by what it puts out."""
        x_TI = torch.randn(8, self.w1.shape[-1], generator=torch.Generator().manual_seed(0)).to(self.w1.device)
        dtype = next(module.parameters()).dtype
        y_TO = module(x_TI.to(dtype)).float()
        for found in (self, Neurons(self.w1.flip(1), self.b1.flip(1), self.w2, self.activation)):
            own = values(found.logits(x_TI.to(dtype).float()), self.activation, 1) @ self.w2 + bias_O
            if F.mse_loss(own, y_TO) < 1e-3 * y_TO.var():
                return found
        return None

    @property
    def gates(self) -> int:
        """G."""
        return self.b1.shape[1]

    def logits(self, x_TI: Tensor) -> Tensor:
        """(T, N, G)."""
        return F.linear(x_TI, self.w1.flatten(0, 1), self.b1.flatten()).unflatten(1, self.b1.shape)

    def most_used(self, z_TNG: Tensor, scale_O: Tensor, count: int, rest_TO: Tensor | None = None) -> Tensor:
        """The `count` neurons whose part of the output varies most on some tokens, or those that are most like it.

        Args:
            z_TNG: logits of the tokens.
            scale_O: by which features of the output are divided, so that each counts alike.
            count: at most all are returned.
            rest_TO: what is left to be explained, if not the whole output.
        """
        h_TN = values(z_TNG, self.activation, 1)
        if rest_TO is None:
            score_N = h_TN.var(0) * (self.w2 / scale_O).square().sum(1)
        else:
            h_TN, rest_TO = h_TN - h_TN.mean(0), (rest_TO - rest_TO.mean(0)) / scale_O
            score_N = (h_TN.T @ rest_TO).square().sum(1) / h_TN.square().sum(0).clamp_min(1e-6)
        return score_N.topk(min(count, len(self.b1))).indices


def values(z_TNG: Tensor, activation: str, sides: int) -> Tensor:
    """What neurons multiply their output rows by, (T, N * sides): relu(-z) and relu(z) where there are two."""
    z_TN, *gate_TN = z_TNG.unbind(-1)
    if sides == 2:
        return torch.stack([F.relu(-z_TN), F.relu(z_TN)], dim=-1).flatten(1)
    h_TN = activate(z_TN, activation)
    return h_TN * gate_TN[0] if gate_TN else h_TN


def fit(features_TF: Tensor, y_TO: Tensor) -> tuple[Tensor, Tensor]:
    """The output rows (F, O) and the bias (O,) that bring features @ rows + bias nearest to y, with a little ridge."""
    mean_F, mean_O = features_TF.mean(0), y_TO.mean(0)
    rows_FO = fit_rows(features_TF - mean_F, y_TO - mean_O)
    return rows_FO, mean_O - mean_F @ rows_FO


def fit_rows(features_TF: Tensor, y_TO: Tensor) -> Tensor:
    """The same without a bias: (F, O)."""
    square_FF = features_TF.T @ features_TF
    square_FF.diagonal().add_(RIDGE * square_FF.diagonal().mean() + 1e-9)
    return torch.linalg.solve(square_FF, features_TF.T @ y_TO)


def _matrix(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of a linear layer, also of GPT-2's, whose weight lies the other way round."""
    layer: Any = linear
    weight: Tensor = layer.weight.detach().float()
    if not isinstance(linear, nn.Linear):
        weight = weight.T
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
