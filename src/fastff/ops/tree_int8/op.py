"""Trees in int8 as one PyTorch operator: schema and fake; the kernel is in `csrc/`, elsewhere the reference runs."""

from typing import Any

import torch
from torch import Tensor

from fastff.ops.activation import activation_name
from fastff.ops.backend import extension
from fastff.ops.checks import check_devices
from fastff.ops.tree_int8.reference import Int8Shape, Int8Tree
from fastff.ops.tree_int8.reference import tree_int8 as reference

# `weights` and `shape` are an `Int8Tree` and an `Int8Shape`, in their order; logits are (D, T, K), as they are made.
torch.library.define(
    "fastff::tree_int8",
    "(Tensor x, Tensor[] weights, int[] shape, int activation) -> (Tensor y, Tensor logits, Tensor leaf)",
)
# A copy of rows, uint8, in memory that is quick to reach here and there; there are kernels for CPUs alone.
torch.library.define("fastff::in_large_pages", "(Tensor bytes) -> Tensor")


@torch.library.register_fake("fastff::tree_int8")
def _(x: Tensor, weights: list[Tensor], shape: list[int], activation: int) -> tuple[Tensor, Tensor, Tensor]:
    check_devices(x, *weights)
    sizes: Any = shape
    T, (K, D, *_), out_features = x.shape[0], shape, Int8Shape(*sizes).out_features
    return (
        x.new_empty(T, out_features),
        x.new_empty(D, T, K, dtype=torch.float32),
        x.new_empty(T, K, dtype=torch.int64),
    )


def _by_definition(x: Tensor, weights: list[Tensor], shape: list[int], activation: int) -> tuple[Tensor, ...]:
    sizes: Any = shape
    y, path = reference(x, Int8Tree(*weights), Int8Shape(*sizes), activation=activation_name(activation))
    return y, path.logits.permute(2, 0, 1).contiguous(), path.leaf


for device in ("cuda", "xpu", "mps") if extension is not None else ("cpu", "cuda", "xpu", "mps"):
    torch.library.impl("fastff::tree_int8", device, _by_definition)
