"""Trees in int8 as one PyTorch operator: schema and fake; the kernel is in `csrc/`, elsewhere the reference runs."""

from typing import Any

import torch
from torch import Tensor

from fastff.ops.activation import activation_name
from fastff.ops.backend import extension
from fastff.ops.checks import check_devices
from fastff.ops.tree_int8.reference import Int8Shape, Int8Tree
from fastff.ops.tree_int8.reference import tree_int8 as reference

# `weights` and `shape` are an `Int8Tree` and an `Int8Shape`, in their order; logits are (D, T, K), as they are made,
# or with heads, (1, T, K), the weights of the leaves.
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
    T, given = x.shape[0], Int8Shape(*sizes)
    K = given.trees
    return (
        x.new_empty(T, given.out_features),
        x.new_empty(1 if given.heads else given.depth, T, K, dtype=torch.float32),
        x.new_empty(T, K, dtype=torch.int64),
    )


def _named(weights: list[Tensor], sizes: Any) -> Int8Tree:
    """What `Int8Tree.tensors` left out is None again."""
    keys = 3 if Int8Shape(*sizes).heads else 0
    first = len(weights) - keys
    return Int8Tree(*weights[:first])._replace(**dict(zip(Int8Tree._fields[-3:], weights[first:], strict=False)))


def _by_definition(x: Tensor, weights: list[Tensor], shape: list[int], activation: int) -> tuple[Tensor, ...]:
    sizes: Any = shape
    y, path = reference(x, _named(weights, sizes), Int8Shape(*sizes), activation=activation_name(activation))
    return y, path.logits.permute(2, 0, 1).contiguous(), path.leaf


for device in ("cuda", "xpu", "mps") if extension is not None else ("cpu", "cuda", "xpu", "mps"):
    torch.library.impl("fastff::tree_int8", device, _by_definition)
