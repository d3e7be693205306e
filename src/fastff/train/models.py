"""The models around a feedforward layer: the layer alone, P1's vision transformer, and a small one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastff.nn import build_layer

MODELS = ("mlp", "vit", "vit-small")


class MLP(nn.Module):
    """The feedforward layer alone, on flattened input, straight to the classes.

    Args:
        shape: of one sample.
        classes: outputs.
        layer: see `fastff.nn.parse_layer`.
        input_dropout: probability with which an input value is left out in training.
    """

    tokens = 1  # of a feedforward layer, a sample

    def __init__(self, shape: tuple[int, ...], classes: int, layer: str, input_dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(input_dropout)
        self.layer = build_layer(layer, torch.Size(shape).numel(), classes)

    def forward(self, x: Tensor) -> Tensor:
        """(T, *shape) -> (T, classes)."""
        return self.layer(self.dropout(x.flatten(1)))


class VisionTransformer(nn.Module):
    """P1's vision transformer: 4 layers, hidden 128, patch 4, the feedforward layer by name; pre-norm, class token.

    Args:
        shape: (C, H, W) of an image, H and W multiples of `patch`.
        classes: outputs.
        layer: see `fastff.nn.parse_layer`.
        input_dropout: probability with which an embedded value is left out in training.
        layers, hidden, heads, patch: of the transformer; heads is not stated in P1.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        layer: str,
        input_dropout: float = 0.0,
        *,
        layers: int = 4,
        hidden: int = 128,
        heads: int = 4,
        patch: int = 4,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or shape[1] % patch or shape[2] % patch:
            raise ValueError(f"model 'vit' needs images (C, H, W) with sides that {patch} divides, got shape {shape}")
        patches = (shape[1] // patch) * (shape[2] // patch)
        self.tokens = patches + 1  # of each feedforward layer, a sample
        self.embed = nn.Conv2d(shape[0], hidden, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, hidden))
        self.position = nn.Parameter(torch.randn(1, patches + 1, hidden) * 0.02)
        self.dropout = nn.Dropout(input_dropout)
        self.blocks = nn.ModuleList(_Block(hidden, heads, layer) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(T, C, H, W) -> (T, classes)."""
        patches = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], dim=1)
        x = self.dropout(x + self.position)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class _Block(nn.Module):
    def __init__(self, hidden: int, heads: int, layer: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.project = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.feedforward = build_layer(layer, hidden)

    def forward(self, x: Tensor) -> Tensor:
        B, S, H = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, S, H)
        x = x + self.project(attended)
        return x + self.feedforward(self.norm2(x))


def build_model(
    model: str, shape: tuple[int, ...], classes: int, layer: str, input_dropout: float = 0.0
) -> MLP | VisionTransformer:
    """Build "mlp", "vit" or "vit-small" (hidden 64, patch 8) with the feedforward layer that `layer` names.

    Raises:
        ValueError: unknown model or layer, or a shape that the model cannot take.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    if model == "mlp":
        return MLP(shape, classes, layer, input_dropout)
    sizes = {"hidden": 64, "patch": 8} if model == "vit-small" else {}
    return VisionTransformer(shape, classes, layer, input_dropout, **sizes)
