"""What operators ask of their arguments; each check names the argument, what came and what was expected."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def check_cmm(weight_BWI: Tensor, index_TS: Tensor, *, x_TI: Tensor | None = None, a_TSW: Tensor | None = None) -> None:
    """Check tokens `x`, factors `a`, or both, against a weight and the blocks that `index` names."""
    if weight_BWI.dim() != 3:
        raise ValueError(f"weight must be of shape (blocks, rows, columns), got {tuple(weight_BWI.shape)}")
    if index_TS.dim() != 2 or index_TS.dtype != torch.int64:
        raise TypeError(
            f"index must be int64 of shape (tokens, blocks a token), got {index_TS.dtype} {tuple(index_TS.shape)}"
        )
    B, W, I = weight_BWI.shape
    T, S = index_TS.shape
    if index_TS.device.type == "cpu" and index_TS.numel():  # elsewhere the values would have to be waited for
        low, high = (int(value) for value in index_TS.aminmax())
        if low < 0 or high >= B:
            raise IndexError(f"index must name blocks from 0 to {B - 1}, got values from {low} to {high}")
    for name, tensor, shape in (("x", x_TI, (T, I)), ("a", a_TSW, (T, S, W))):
        if tensor is None:
            continue
        if tensor.dtype != weight_BWI.dtype:
            raise TypeError(f"{name} must have the dtype of the weight, {weight_BWI.dtype}, got {tensor.dtype}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be of shape {shape} to fit weight and index, got {tuple(tensor.shape)}")


def check_cmm_outer(a_TSW: Tensor, x_TI: Tensor, index_TS: Tensor, blocks: int) -> None:
    """Check the arguments of `cmm_outer` as if against the weight whose gradient it is."""
    if a_TSW.dim() != 3 or x_TI.dim() != 2:
        raise ValueError(f"a (T, S, W) and x (T, I) are needed, got {tuple(a_TSW.shape)} and {tuple(x_TI.shape)}")
    weight_BWI = x_TI.new_empty(1).expand(blocks, a_TSW.shape[2], x_TI.shape[1])
    check_cmm(weight_BWI, index_TS, x_TI=x_TI, a_TSW=a_TSW)


def check_devices(x: Tensor, *others: Tensor | None) -> None:
    """Raise a ValueError unless all tensors are where x is (a fake tensor says where it would be)."""
    for other in others:
        if other is not None and other.device != x.device:
            raise ValueError(f"all tensors must be on the device of x, {x.device}, got one on {other.device}")


def check_reverse_mode() -> None:
    """Raise a NotImplementedError where forward-mode derivatives are taken: PyTorch says they are 0 of any operator."""
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            "forward-mode derivatives (torch.func.jvp, jacfwd, hessian) go through no routed layer of fastff; "
            "torch.autograd's are in reverse mode, those of torch.autograd.functional too"
        )


def check_tensor(
    name: str, tensor: Tensor, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    """Raise a RuntimeError unless `tensor` is where x is, of that shape and of that dtype, or of that of x."""
    if tensor.device != x.device:
        raise RuntimeError(f"{name} must be on the device of x, {x.device}, got one on {tensor.device}")
    if tensor.dtype != (dtype or x.dtype):
        raise RuntimeError(f"{name} must be {dtype or x.dtype}, got {tensor.dtype}")
    if tuple(tensor.shape) != shape:
        raise RuntimeError(f"{name} must be of shape {shape}, got {tuple(tensor.shape)}")


def check_choice(name: str, value: int, end: int) -> None:
    """Raise a RuntimeError unless `value` is one of 0 .. end - 1."""
    if not 0 <= value < end:
        raise RuntimeError(f"{name} must be from 0 to {end - 1}, got {value}")


def tree_depth(nodes: int) -> int:
    """Levels of a complete binary tree of `nodes` = 2^levels - 1 nodes.

    Raises:
        ValueError: no complete tree has that many nodes.
    """
    levels = (nodes + 1).bit_length() - 1
    if nodes != 2**levels - 1:
        raise ValueError(f"a complete binary tree has 2^depth - 1 nodes, got {nodes}")
    return levels
