"""Trees in int8 as a function: the whole family, for inference."""

from typing import Any

import torch
from torch import Tensor

import fastff.ops.tree_int8.op  # noqa: F401  # registers the operator
from fastff.ops.activation import activation_code
from fastff.ops.autograd import may_learn
from fastff.ops.backend import backend_of
from fastff.ops.tree.reference import Path
from fastff.ops.tree_int8 import reference
from fastff.ops.tree_int8.reference import Int8Shape, Int8Tree


def tree_int8(x: Tensor, tree: Int8Tree, shape: Int8Shape, *, activation: str = "gelu") -> tuple[Tensor, Path]:
    """What `tree_feedforward` or, with product keys, `PEER` computes, with weights and tokens in bytes.

    Args:
        x: (T, I), float32, bfloat16 or float16 (on the reference backend any floating-point type).
        tree, shape: as `quantise_tree` or `quantise_experts` makes them.
        activation: a key of `fastff.ops.ACTIVATIONS`, of one-sided neurons.

    Returns:
        y (T, O) in the dtype of x, and the path; of product keys the experts as leaves, and their weights as logits.

    Raises:
        RuntimeError: tensors do not fit together; or in a backward, as there are no gradients.
        ValueError: no such activation.
    """
    code = activation_code(activation)
    if backend_of(x) == "reference":
        y, path = reference.tree_int8(x.detach(), tree, shape, activation=activation)
    else:
        y, logits, leaf = torch.ops.fastff.tree_int8.default(x, tree.tensors, list(shape), code)
        path = Path(logits.permute(1, 2, 0), leaf)
    return (_Ends.apply(y, x) if may_learn(x) else y), path


class _Ends(torch.autograd.Function):
    """An output of which there is no gradient: an error where one is asked for, rather than none."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, _: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "a layer in int8 has no gradients: train it before fastff.quantize, or detach what it puts out"
        )
