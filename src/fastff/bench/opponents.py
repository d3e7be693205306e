"""The same layers computed otherwise: PyTorch's own gathers, products of groups, compiler, int8, the reference backend.

Each has an attribute `definition`, the layer whose output it must give.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastff.bench.candidate import UnavailableError
from fastff.nn import FeedForward, FeedForwardLayer, MoE, UltraFFF
from fastff.ops import activate, use_backend

CHUNK = 2048  # tokens whose rows are gathered at a time
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class OnReference(nn.Module):
    """A layer on the reference backend, whose operators are made of PyTorch's own."""

    def __init__(self, layer: FeedForwardLayer) -> None:
        super().__init__()
        self.definition = layer

    def forward(self, x: Tensor) -> Tensor:
        with use_backend("reference"):
            return self.definition(x)


class GatherBmm(nn.Module):
    """`UltraFFF` as one writes it in plain PyTorch: on each level gather every token's row, multiply, step."""

    def __init__(self, layer: UltraFFF) -> None:
        super().__init__()
        self.definition = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._chunk(part) for part in x.split(CHUNK)])

    def _chunk(self, x_TI: Tensor) -> Tensor:
        layer = self.definition
        w_in, b_in, w_out = (p.flatten(0, 1) for p in (layer.w_in, layer.b_in, layer.w_out))
        N = layer.w_in.shape[1]
        y_TO = x_TI.new_zeros(len(x_TI), layer.out_features)
        for tree in range(layer.trees):
            node_T = x_TI.new_zeros(len(x_TI), dtype=torch.int64)
            for _ in range(layer.depth + 1):
                row_T = node_T + tree * N
                z_T11 = torch.bmm(w_in[row_T].unsqueeze(1), x_TI.unsqueeze(2)) + b_in[row_T].view(-1, 1, 1)
                hidden_T11 = activate(z_T11, layer.activation)
                y_TO = y_TO + torch.bmm(hidden_T11, w_out[row_T].unsqueeze(1)).squeeze(1)
                node_T = 2 * node_T + 1 + (z_T11.view(-1) >= 0).long()
        return y_TO


class Compiled(nn.Module):
    """A layer under `torch.compile`, for one number of tokens: what was compiled before is forgotten, as PyTorch
    compiles a function for a few shapes at most, those of all layers together.
    """

    def __init__(self, layer: FeedForwardLayer) -> None:
        super().__init__()
        torch.compiler.reset()
        self.definition = layer
        self.compiled = torch.compile(layer, fullgraph=True, dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.compiled(x)


class GroupedExperts(nn.Module):
    """`MoE` in inference, its experts' products by PyTorch's grouped matrix multiplication."""

    def __init__(self, layer: MoE) -> None:
        super().__init__()
        if not hasattr(F, "grouped_mm"):
            raise UnavailableError("this PyTorch has no grouped_mm")
        if any(size * layer.expert_w1.itemsize % 16 for size in layer.expert_w1.shape[1:]):
            raise UnavailableError("grouped_mm takes rows of a multiple of 16 bytes alone")
        self.definition = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.definition
        best, chosen = F.linear(x, layer.gate_weight).topk(layer.top_k, dim=-1)
        expert_R, order_R = chosen.flatten().sort(stable=True)
        token_R = order_R // layer.top_k
        ends_E = torch.searchsorted(expert_R, torch.arange(layer.experts, device=x.device), right=True).int()
        z_RW = F.grouped_mm(x[token_R], layer.expert_w1.transpose(1, 2), offs=ends_E) + layer.expert_b1[expert_R]
        hidden_RW = activate(z_RW, layer.activation)
        y_RO = F.grouped_mm(hidden_RW, layer.expert_w2, offs=ends_E) + layer.expert_b2[expert_R]
        gate_R1 = best.softmax(-1).flatten()[order_R].unsqueeze(-1)
        return x.new_zeros(len(x), layer.out_features).index_add(0, token_R, gate_R1 * y_RO)


class LinearPair(nn.Module):
    """A dense layer as two `nn.Linear`, whose second weight lies the other way round in memory."""

    def __init__(self, layer: FeedForward) -> None:
        super().__init__()
        self.definition = layer
        self.layers = _as_linear(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Int8(nn.Module):
    """A dense layer in dynamic int8: weights int8, one scale a row; inputs quantised in each call."""

    def __init__(self, layer: FeedForward) -> None:
        super().__init__()
        self.layers = linear_in_int8(_as_linear(layer))
        with torch.no_grad():
            layer.w1.copy_(self.layers[0].weight().dequantize())
            layer.w2.copy_(self.layers[2].weight().dequantize().T)
        self.definition = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _as_linear(layer: FeedForward) -> Any:
    """Two `nn.Linear` and the activation, or the gate, between them, of the same weights; the second is a copy."""
    first = nn.Linear(layer.in_features, len(layer.b1), device="meta")
    second = nn.Linear(layer.width, layer.out_features, device="meta")
    first.weight, first.bias = nn.Parameter(layer.w1.detach()), nn.Parameter(layer.b1.detach())
    second.weight, second.bias = nn.Parameter(layer.w2.detach().T.contiguous()), nn.Parameter(layer.b2.detach())
    between = _Gate(layer.activation) if layer.gated else _ACTIVATIONS[layer.activation]()
    return nn.Sequential(first, between, second)


class _Gate(nn.Module):
    """Of 2 W features the W products activation(z_w) z_(W + w)."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        first, second = z.chunk(2, dim=-1)
        return activate(first, self.activation) * second


def linear_in_int8(module: nn.Module) -> Any:
    """Its `nn.Linear` in PyTorch's dynamic int8, in place; UnavailableError if PyTorch has none."""
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        with warnings.catch_warnings():  # deprecated in favour of a package that has no kernels of its own for this
            warnings.simplefilter("ignore")
            return quantize_dynamic(module, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UnavailableError(f"this PyTorch has no dynamic int8: {next(iter(str(error).splitlines()), '')}") from None
