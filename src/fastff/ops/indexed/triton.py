"""The indexed feedforward on GPUs: tokens sorted by expert, each expert's hidden neurons a block."""

from typing import Any

import torch
from torch import Tensor

from fastff.ops.activation import ACTIVATIONS
from fastff.ops.checks import check_choice, check_tensor
from fastff.ops.triton.blocks import Blocks, Rows
from fastff.ops.triton.config import SHORT
from fastff.ops.triton.group import sort_slots
from fastff.ops.triton.kernels.columns import LEAVES, SMALLEST
from fastff.ops.triton.kernels.learn import learn_path
from fastff.ops.triton.launch import columns, divided, launch, on_device
from fastff.ops.triton.outers import Outer, fill
from fastff.ops.triton.products import gains, hidden_neurons
from fastff.ops.triton.sums import spread


class _Experts:
    """Tokens, the experts that they name and their weights, checked and contiguous."""

    def __init__(
        self,
        x: Tensor,
        index: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor | None,
        gate: Tensor | None,
        mask: Tensor | None,
        *,
        activation: int,
    ) -> None:
        for name, t, dims in (("x", x, 2), ("index", index, 2), ("w1", w1, 3), ("w2", w2, 3)):
            if t.dim() != dims:
                raise RuntimeError(f"{name} must have {dims} dimensions, got {tuple(t.shape)}")
        (T, I), S, (E, W, _), O = x.shape, index.shape[1], w1.shape, w2.shape[2]
        check_tensor("index", index, x, (T, S), torch.int64)
        shapes = {"w1": (E, W, I), "b1": (E, W), "w2": (E, W, O), "b2": (E, O), "gate": (T, S), "mask": (T, S, W)}
        for (name, shape), given in zip(shapes.items(), (w1, b1, w2, b2, gate, mask), strict=True):
            if given is not None:
                check_tensor(name, given, x, shape)
        check_choice("activation", activation, len(ACTIVATIONS))
        # What the device finds later it says then: a value that had to be read here would hold up all that follows.
        torch._assert_async(((index >= 0) & (index < E)).all(), f"index must hold values from 0 to {E - 1}")
        self.x, self.index, self.w1, self.b1, self.w2 = (t.contiguous() for t in (x, index, w1, b1, w2))
        self.bias = None if b2 is None else b2.contiguous()
        self.gate, self.mask = (None if t is None else t.contiguous() for t in (gate, mask))
        self.T, self.S, self.W, self.O = T, S, W, O

    def blocks(self) -> Blocks:
        """Each expert a block: a tree of no levels."""
        experts = self.w1.shape[0]
        return Blocks(sort_slots(self.index, experts), experts, self.S, 0, 0, 0, self.index)


def indexed(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    """`fastff::indexed`."""
    *tensors, activation, keep_hidden = inputs
    e = _Experts(x, *tensors, activation=activation)
    y, hidden = x.new_empty(e.T, e.O), x.new_empty(e.T, e.S, e.W, dtype=torch.float32)
    if y.numel():
        with on_device(x):
            blocks = e.blocks()
            hidden_neurons(blocks, e.x, e.w1, e.b1, hidden)
            leaves = Rows(hidden, e.w2, 1)
            spread(blocks, y, None, leaves, activation=activation, bias=e.bias, mask=e.mask, gate=e.gate)
    return y, hidden if keep_hidden else hidden[:0]


def indexed_backward(grad_y: Tensor, x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """`fastff::indexed_backward`: of x, w1, b1, w2, b2 and gate those in `needs`."""
    *tensors, hidden, activation, needs = inputs
    e = _Experts(x, *tensors, activation=activation)
    T, S, W = e.T, e.S, e.W
    check_tensor("grad_y", grad_y, x, (T, e.O))
    check_tensor("hidden", hidden, x, (T, S, W), torch.float32)
    b2 = e.w2.new_zeros(e.w2.shape[0], e.O) if e.bias is None else e.bias  # the products are made with a bias
    wanted = [bool(needs >> bit & 1) and (bit != 4 or e.bias is not None) for bit in range(6)]
    grads = [*(torch.empty_like(t) for t in (e.x, e.w1, e.b1, e.w2, b2)), x.new_empty(T, S)]
    if e.index.numel():
        grad_y = grad_y.contiguous()
        with on_device(x):
            blocks = e.blocks()
            kept = hidden if e.mask is None else e.mask
            gain, bias_gain = torch.empty_like(hidden), hidden.new_empty(T, S, 1)
            gains(blocks, grad_y, None, Rows(hidden, e.w2, 1), b2, (gain, gain, bias_gain))
            factor, amplitude = torch.empty_like(hidden), torch.empty_like(hidden)
            launch(
                learn_path,
                (divided(T * S, SMALLEST),),
                SHORT,
                (
                    *(hidden, gain, hidden, gain, kept, bias_gain, gain, e.index, gain),
                    *(factor, amplitude, factor, amplitude, T * S),
                ),
                {
                    "DEPTH": 0,
                    "WIDTH": W,
                    "NODE_SIDES": 0,
                    "LEAF_SIDES": 1,
                    "ACTIVATION": activation,
                    "GRADIENT": 0,
                    "MASKED": e.mask is not None,
                    "GIVEN": False,
                    "BT": SMALLEST,
                    "P": 1,
                    "C": columns(W),
                },
            )
            if wanted[5]:
                grads[5] = ((amplitude * gain).sum(-1) + bias_gain.squeeze(-1)).to(x.dtype)
            weight = torch.ones_like(bias_gain) if e.gate is None else e.gate.unsqueeze(-1).float()
            if e.gate is not None:
                factor, amplitude = factor * weight, amplitude * weight
            if wanted[0]:
                spread(blocks, grads[0], None, Rows(factor, e.w1, 1))
            outers = []
            if wanted[1] or wanted[2]:
                outers.append(Outer(blocks, factor, e.x, grads[1], LEAVES, W, bias=grads[2]))
            if wanted[3]:
                outers.append(Outer(blocks, amplitude, grad_y, grads[3], LEAVES, W))
            if wanted[4]:
                outers.append(Outer(blocks, weight, grad_y, grads[4], LEAVES))
            fill(outers)
    else:
        grads = [g.zero_() for g in grads]
    return tuple(g if w else g.new_empty(0) for g, w in zip(grads, wanted, strict=True))
