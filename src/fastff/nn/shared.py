"""What all tokens of a layer pass, whichever neurons they choose: a projection before, dense neurons beside."""

import torch.nn.functional as F
from torch import Tensor

from fastff.ops import activate


def project(x: Tensor, projection: Tensor) -> Tensor:
    """LayerNorm(P x), (T, in) -> (T, R)."""
    return F.layer_norm(F.linear(x, projection), projection.shape[:1])


def master_shapes(width: int, in_features: int, out_features: int) -> dict[str, tuple[int, ...]]:
    """Parameters of a master leaf of so many neurons; none without."""
    if not width:
        return {}
    return {"master_w1": (width, in_features), "master_b1": (width,), "master_w2": (width, out_features)}


def master_leaf(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, activation: str) -> Tensor:
    """A dense layer without output bias, (T, in) -> (T, out)."""
    return activate(F.linear(x, w1, b1), activation) @ w2
