"""Rows of a parameter that miss steps of AdamW, which are made up for when they are read.

Dense AdamW moves every row at every step, also one that no token passed: by weight decay, and by its momentum, which
fades. Here such a row rests, and what it missed is made up for when a forward is about to read it or a gradient comes.
Let the moments m and v date from step t. Of the steps j = t + 1, t + 2, ... without a gradient AdamW (Loshchilov &
Hutter, "Decoupled Weight Decay Regularization", 2019) makes

    p <- prod_j (1 - lr_j wd) p - m sum_j alpha_j / (sqrt(v) + eps exp(y_j))
    y_j = log(sqrt(1 - b2^j) / b2^((j - t) / 2))
    alpha_j = lr_j / (1 - b1^j) b1^(j - t) exp(y_j) prod_{i > j} (1 - lr_i wd)

The sum is an integral of 1 / (sqrt(v) + eps exp(y)), a sigmoid of y divided by sqrt(v), by a measure on y that is the
same for all elements of a row. A row keeps six moments of it, which a step updates without a look at the row itself;
they determine a Gauss quadrature of two or three nodes, which gives the sum, however many steps were missed. (In y, not
in exp(y), whose powers may grow faster than alpha fades.) Its error is greatest where sqrt(v) is about eps: with
b = (0.9, 0.999) at most 5e-5 lr if t = 1, 1e-6 lr if t >= 10; with b = (0.9, 0.95) at most 2e-3 and 5e-4 lr.

Shapes: K trees, M blocks (nodes or leaves) of a tree, R = K M rows of E elements; U rows that are dealt with.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fastff.ops import backend_of
from fastff.optim.dense import adamw_step
from fastff.optim.gauss import gauss_quadrature

SPARSE = 1 / 4  # if more of a parameter's rows have a gradient, all are stepped: what waits costs the next forward
MOMENTS = ("exp_avg", "exp_avg_sq")

# `Rows._bring` and `Rows._step` in C++: one pass over the rows, in place. `all`: rows without gradient step too, as
# if it were zero, instead of missing the step.
_ROWS = "Tensor(a!) weight, Tensor(b!) mean, Tensor(c!) square, Tensor(d!) pending, Tensor(e!) behind, Tensor rows"
_STEP = "Tensor grad, bool all, float lr, float beta1, float beta2, float weight_decay, float step"
torch.library.define("fastff::bring_rows", f"({_ROWS}, float eps) -> ()")
torch.library.define("fastff::step_rows", f"({_ROWS}, float eps, {_STEP}) -> ()")


class Rows:
    """The rows (R, E) of a parameter (K, M, ...), and what each has missed.

    Attributes:
        current: whether no row has missed anything.
        behind: (R,) bool, of which rows the weights have missed something.
        pending: (9, R) float64. Since the row's moments date: (b1 / sqrt(b2))^k and -k log(b2) / 2, k the steps missed;
            since its weights do: 1 - product of (1 - lr wd), and the sums of alpha y^i, i = 0 to 5.
        eps: that of the steps missed.
        space: (5, U, E), to compute with U rows at a time.
    """

    def __init__(self, p: Tensor, state: dict[str, Tensor], space: Tensor) -> None:
        self.p, self.state, self.space, self.eps, self.current = p, state, space, 0.0, True
        self.shape = p.shape[:2].numel(), p.shape[2:].numel()
        self.behind = torch.zeros(self.shape[0], dtype=torch.bool, device=p.device)
        self.pending = torch.zeros(9, self.shape[0], dtype=torch.float64, device=p.device)
        self.pending[0] = 1

    def step(self, grad: Tensor, group: dict[str, Any]) -> bool:
        """The step of AdamW with a sparse gradient (K, M, ...); False, and nothing done, if a dense one is quicker.

        Rows with a gradient step now, the others later, or now if so many have one that keeping account does not pay.
        """
        compiled, few = self._compiled(), grad._nnz() <= self.shape[0] * SPARSE
        if compiled is None and not few:
            return False
        rows, values = _rows_of(grad)
        if self.eps != group["eps"]:
            self.settle()
            self.eps = group["eps"]
        step = self.state["step"].item() + 1
        if compiled is not None:
            numbers = *group["betas"], group["weight_decay"], step
            torch.ops.fastff.step_rows(*compiled, rows, self.eps, values, not few, group["lr"], *numbers)
        else:
            self._step(rows, values, step, group)
        self.state["step"] += 1
        self.current = not few
        return True

    def _step(self, rows: Tensor, values: Tensor, step: float, group: dict[str, Any]) -> None:
        """Step number `step`, with the gradient `values` (U, E) of the rows."""
        self._bring(rows[self.behind[rows]])
        fades = self._fading(rows)
        for part in self._parts(rows):
            weights, mean, square, *_ = self._take(rows[part])
            moments = {key: t.mul_(fade[part]) for key, t, fade in zip(MOMENTS, (mean, square), fades, strict=True)}
            before = torch.tensor(step - 1.0)
            adamw_step([weights], [values[part].to(weights.dtype)], [moments | {"step": before}], group)
            for target, new in zip(self._tensors(), (weights, mean, square), strict=True):
                _put(target, rows[part], new)
        self._miss(step, group)
        self.pending.index_fill_(1, rows, 0)[0].index_fill_(0, rows, 1)
        self.behind.index_fill_(0, rows, False)

    def read(self, met: Tensor) -> bool:
        """Bring the weights of the rows that are met, (K, 2 N + 1) bool, up to date; whether any had to be."""
        M, N = self.p.shape[1], met.shape[1] // 2
        rows = ((met[:, :N] if M == N else met[:, N:]).flatten() & self.behind).nonzero().squeeze(1)
        self._bring(rows)
        return rows.numel() > 0

    def settle(self) -> None:
        """Bring weights and moments of all rows up to date."""
        if self.current:
            return
        self._bring(self.behind.nonzero().squeeze(1))
        for key, fade in zip(MOMENTS, self._fading(slice(None)), strict=True):
            self.state[key].view(self.shape).mul_(fade)
        self.pending.zero_()[0] = 1
        self.current = True

    def _tensors(self) -> list[Tensor]:
        """Weights and both moments, each (R, E).

        The weights by `data`, which hides from autograd that they change: those that a graph has read do not.
        """
        return [t.view(self.shape) for t in (self.p.data, *(self.state[key] for key in MOMENTS))]

    def _compiled(self) -> list[Tensor] | None:
        """What the C++ works on; None where PyTorch's operators do the work."""
        tensors = self._tensors()
        fit = all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors) and backend_of(self.p) == "cpu"
        return [*tensors, self.pending, self.behind] if fit else None

    def _parts(self, rows: Tensor) -> list[slice]:
        size = self.space.shape[1]
        return [slice(start, start + size) for start in range(0, rows.numel(), size)]

    def _take(self, rows: Tensor) -> list[Tensor]:
        """Copies of weights and both moments of as many rows as `_parts` gives, and two more tensors of their size."""
        space = list(self.space[:, : rows.numel()])
        for source, copied in zip(self._tensors(), space, strict=False):
            if source.dtype == copied.dtype:
                torch.index_select(source, 0, rows, out=copied)
            else:
                copied.copy_(source.index_select(0, rows))
        return space

    def _fading(self, rows: Tensor | slice) -> list[Tensor]:
        """The factors (U, 1) by which the moments of rows have faded, b1^k and b2^k."""
        ratio, lag = self.pending[:2, rows].unsqueeze(-1)
        return [fade.to(self.space.dtype) for fade in (ratio * torch.exp(-lag), torch.exp(-2 * lag))]

    def _miss(self, step: float, group: dict[str, Any]) -> None:
        """Note for all rows that they miss this step."""
        (b1, b2), lr = group["betas"], group["lr"]
        decay, correction = lr * group["weight_decay"], math.sqrt(1 - b2**step)
        ratio, lag, shrinkage, *moments = self.pending
        ratio.mul_(b1 / math.sqrt(b2))
        lag.sub_(math.log(b2) / 2)
        self.pending[2:].mul_(1 - decay)
        shrinkage.add_(decay)
        y, power = lag + math.log(correction), ratio * (lr * correction / (1 - b1**step))
        for moment in moments:
            moment.add_(power)
            power.mul_(y)
        self.behind.fill_(True)

    def _bring(self, rows: Tensor) -> None:
        """Bring the weights of rows (U,) up to date."""
        if rows.numel() == 0:
            return
        if (compiled := self._compiled()) is not None:
            torch.ops.fastff.bring_rows(*compiled, rows, self.eps)
            return
        pending = self.pending[2:].index_select(1, rows)
        amounts, y = gauss_quadrature(pending[1:])
        offsets = torch.exp(y).mul_(self.eps).clamp_min_(1e-30)  # where no gradient ever came: not 0 / 0
        keep, amounts, offsets = (t.to(self.space.dtype).unsqueeze(-1) for t in (1 - pending[0], amounts, offsets))
        for part in self._parts(rows):
            weights, mean, root, factor, denominator = self._take(rows[part])
            root.sqrt_()
            torch.div(amounts[0][part], torch.add(root, offsets[0][part], out=denominator), out=factor)
            for amount, offset in zip(amounts[1:], offsets[1:], strict=True):
                factor.addcdiv_(amount[part], torch.add(root, offset[part], out=denominator))
            _put(self._tensors()[0], rows[part], weights.mul_(keep[part]).addcmul_(mean, factor, value=-1))
        self.pending[2:].index_fill_(1, rows, 0)
        self.behind.index_fill_(0, rows, False)


def _rows_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (U,) of a sparse gradient (K, M, ...), ascending and each once, and their values (U, E)."""
    rows = _numbers(grad)
    if not (rows[1:] > rows[:-1]).all():  # autograd forgets that what it accumulates alone is coalesced
        grad = grad.coalesce()
        rows = _numbers(grad)
    return rows, grad._values().flatten(1)


def _numbers(grad: Tensor) -> Tensor:
    tree, block = grad._indices()
    return tree * grad.shape[1] + block


def _put(target: Tensor, rows: Tensor, values: Tensor) -> None:
    """target[rows] = values, in elements of 16 bytes where these fit: PyTorch copies element by element."""
    values = values.to(target.dtype)
    if all(n * target.itemsize % 16 == 0 for n in (target.shape[1], target.storage_offset())):
        target, values = target.view(torch.complex128), values.view(torch.complex128)
    target.index_copy_(0, rows, values)
