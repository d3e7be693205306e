"""AdamW whose step costs in proportion to the rows (nodes, leaves) that tokens passed, with dense AdamW's result.

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

import copy
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module
from torch.optim.adamw import adamw

from fastff.nn.layer import autocasts_input
from fastff.nn.routed import TreeLayer
from fastff.ops import backend_of, cmm_in, tree_feedforward
from fastff.ops.descend import global_rows
from fastff.optim.blockwise import REQUIREMENTS

NARROW = 32  # elements: of shorter rows all are stepped, which is quicker than to keep account of them
SPARSE = 1 / 4  # if more of a parameter's rows have a gradient, all are stepped: what waits costs the next forward
CHUNK = 2**18  # elements dealt with at once
NARROW_VARIANCE = 3e-4  # up to which two nodes of quadrature suffice

_MOMENTS = ("exp_avg", "exp_avg_sq")
_BETAS = ("two numbers in [0, 1), the second above 0", lambda v: REQUIREMENTS["betas"][1](v) and v[1] > 0)

# `_Rows._bring` and `_Rows._step` in C++: one pass over the rows, in place. `all`: rows without gradient step too, as
# if it were zero, instead of missing the step.
_ROWS = "Tensor(a!) weight, Tensor(b!) mean, Tensor(c!) square, Tensor(d!) pending, Tensor(e!) behind, Tensor rows"
_STEP = "Tensor grad, bool all, float lr, float beta1, float beta2, float weight_decay, float step"
torch.library.define("fastff::bring_rows", f"({_ROWS}, float eps) -> ()")
torch.library.define("fastff::step_rows", f"({_ROWS}, float eps, {_STEP}) -> ()")


class RowwiseAdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW` for trees with `sparse=True`: a step costs in proportion to the rows that tokens passed.

    Weights and outputs are those of `torch.optim.AdamW` within rounding: before each forward of a tree layer of `model`
    (`UltraFFF`, `TreeFeedForward`) a hook brings the rows that it is going to read up to date. Other rows wait; so call
    `catch_up` before weights are read or written in any other way: copied, exported, merged (`fastff.merge_base`).
    Saving and loading (`state_dict`, `load_state_dict` of model and optimiser) do it by themselves, as does the end of
    the optimiser. All other parameters, and dense gradients, step as in `torch.optim.AdamW`. A step keeps account of
    every row, but in a few numbers instead of all its elements.

    Args:
        params: parameters, or parameter groups, each of which may set any of the numbers below.
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`, betas[1] above 0; schedulers may change them.
        model: the module whose tree layers are hooked.

    The state is that of `torch.optim.AdamW`: step, exp_avg, exp_avg_sq.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: torch.distributed runs more than one process: rows would be rounded differently in each.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        model: Module,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        if not isinstance(model, Module):
            raise ValueError(f"model must be a torch.nn.Module, got {model!r}")
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise RuntimeError("RowwiseAdamW works in one process: others would round the rows at other times")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._model = model
        self._rows: dict[Tensor, _Rows] = {}  # of the parameters that had a sparse gradient
        self._watch()

    def _watch(self) -> None:
        """Hook every tree layer of the model, until this optimiser is gone."""
        layers = [module for module in self._model.modules() if isinstance(module, TreeLayer)]
        self._trees = {p for layer in layers for p in layer.parameters(recurse=False)}
        hooks = _Hooks(self)
        handles = [
            handle
            for layer in layers
            for handle in (
                layer.register_forward_pre_hook(hooks.before_forward, with_kwargs=True),
                layer.register_state_dict_pre_hook(hooks.before_copy),
                layer.register_load_state_dict_pre_hook(hooks.before_copy),
            )
        ]
        weakref.finalize(self, _finish, self._rows, handles).atexit = False

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_model": self._model, "_rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_model" in state:  # a copy, not load_state_dict, which comes by here too
            self._watch()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, which may set any of the constructor's numbers; ValueError if one is out of range."""
        requirements = REQUIREMENTS | {"betas": _BETAS}
        for name, value in (self.defaults | param_group).items():
            if name in requirements and not requirements[name][1](value):
                raise ValueError(f"{name} must be {requirements[name][0]}, got {value!r}")
        super().add_param_group(param_group)

    def catch_up(self) -> None:
        """Bring all rows up to date."""
        self._settle(self._rows)

    def _space(self, p: Tensor) -> Tensor:
        """Memory to compute with rows of `p`, one for all of their length: fresh pages would cost the most time."""
        E, dtype = p.shape[2:].numel(), torch.promote_types(p.dtype, torch.float32)
        known = [rows.space for rows in self._rows.values() if rows.space.shape[2] == E]
        alike = [space for space in known if (space.dtype, space.device) == (dtype, p.device)]
        return alike[0] if alike else torch.empty(5, max(1, CHUNK // E), E, dtype=dtype, device=p.device)

    @torch.no_grad()
    def _settle(self, parameters: Any) -> None:
        for p in parameters:
            if p in self._rows:
                self._rows[p].settle()

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.Optimizer.state_dict`, after `catch_up`."""
        self.catch_up()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; training goes on bit for bit as where it was saved."""
        self.catch_up()
        self._rows.clear()
        super().load_state_dict(copy.deepcopy(state_dict))  # the state is updated in place: it must not be shared

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step; returns what `closure`, called with gradients on, did. ValueError: a gradient is complex."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            dense: dict[Tensor, Tensor] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_complex():
                    raise ValueError(f"grad must be real, got {p.grad.dtype}")
                if not self.state[p]:
                    self.state[p] |= {"step": torch.tensor(0.0)}
                    self.state[p] |= {key: torch.zeros_like(p) for key in _MOMENTS}
                if p in self._trees and p.grad.is_sparse and p.shape[2:].numel() >= NARROW:
                    if p not in self._rows:
                        self._rows[p] = _Rows(p, self.state[p], self._space(p))
                    if self._rows[p].step(p.grad, group):
                        continue
                dense[p] = p.grad.to_dense() if p.grad.is_sparse else p.grad
            self._settle(dense)
            _adamw(list(dense), list(dense.values()), [self.state[p] for p in dense], group)
        return loss

    def _before_forward(self, layer: TreeLayer, x: Any) -> None:
        """Bring those rows of a layer's parameters up to date that a forward on `x`, or its backward, reads.

        Which rows these are depends on the values of those above: the trees are descended as they stand, what was met
        on the way is brought up to date, and so on until nothing on the way has changed. Each time the paths are right
        at least one level further, mostly at once to their end.
        """
        rows = [self._rows[p] for p in layer.parameters(recurse=False) if p in self._rows]
        weight, bias = (getattr(layer, name) for name in layer.parameter_names[:2])  # these decide
        if all(r.current for r in rows) or not isinstance(x, Tensor) or x.shape[-1:] != weight.shape[-1:]:
            return  # nothing to do, or an error, which is the forward's to raise
        if not autocasts_input(x) and x.dtype != weight.dtype:
            return  # likewise
        dtype = torch.get_autocast_dtype(x.device.type) if autocasts_input(x) else x.dtype
        x_TI = x.reshape(-1, x.shape[-1]).to(dtype)
        sides = layer.training and torch.is_grad_enabled() and getattr(layer, "gradient", "") in ("exact", "sampled")
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            met = _met(x_TI, weight.to(dtype), bias.to(dtype), sides)
            while weight in self._rows and self._rows[weight].read(met):
                met = _met(x_TI, weight.to(dtype), bias.to(dtype), sides)
            for r in rows:
                r.read(met)


class _Hooks:
    """Hooks of the layers. They know the optimiser weakly; copied or pickled along with a model they know none."""

    def __init__(self, optimizer: RowwiseAdamW | None = None) -> None:
        self._reference = None if optimizer is None else weakref.ref(optimizer)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Hooks, ()

    @property
    def _optimizer(self) -> RowwiseAdamW | None:
        return None if self._reference is None else self._reference()

    @torch.compiler.disable
    def before_forward(self, layer: TreeLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (optimizer := self._optimizer) is not None:
            optimizer._before_forward(layer, args[0] if args else kwargs.get("x"))

    def before_copy(self, layer: TreeLayer, *_: Any) -> None:
        """Of `state_dict` and `load_state_dict`."""
        if (optimizer := self._optimizer) is not None:
            optimizer._settle(layer.parameters(recurse=False))


def _finish(rows: "dict[Tensor, _Rows]", handles: list[Any]) -> None:
    """The end of an optimiser: its hooks go, and nothing stays to be made up for."""
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        for r in rows.values():
            r.settle()


class _Rows:
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
            moments = {key: t.mul_(fade[part]) for key, t, fade in zip(_MOMENTS, (mean, square), fades, strict=True)}
            before = torch.tensor(step - 1.0)
            _adamw([weights], [values[part].to(weights.dtype)], [moments | {"step": before}], group)
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
        for key, fade in zip(_MOMENTS, self._fading(slice(None)), strict=True):
            self.state[key].view(self.shape).mul_(fade)
        self.pending.zero_()[0] = 1
        self.current = True

    def _tensors(self) -> list[Tensor]:
        """Weights and both moments, each (R, E).

        The weights by `data`, which hides from autograd that they change: those that a graph has read do not.
        """
        return [t.view(self.shape) for t in (self.p.data, *(self.state[key] for key in _MOMENTS))]

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
        amounts, y = _gauss(pending[1:])
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


def _gauss(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss quadrature of measures with moments 0 to 5 (6, U), float64: weights and nodes, (2, U) or (3, U).

    The nodes are the roots of the orthogonal polynomial of degree 3, or of degree 2 where the measures are narrow: what
    that misses of a sigmoid's integral is less than the fourth power of the standard deviation.
    """
    total = moments[0]
    mean, r2, r3, r4, r5 = moments[1:] / total.clamp_min(1e-200)
    square = mean * mean
    variance = (r2 - square).clamp_min_(1e-10)  # that of a single step is 0
    deviation = variance.sqrt()
    skewness = (r3 - mean * (3 * r2 - 2 * square)) / (variance * deviation)
    narrow = variance < NARROW_VARIANCE
    if narrow.all():  # the roots of x^2 - skewness x - 1
        half = skewness / 2
        radius = (half * half + 1).sqrt_()
        x = torch.stack([half - radius, half + radius])
        weights = 1 / (1 + x * x)
    else:  # p1 = x, p2 = x p1 - skewness x - 1, p3 = (x - a) p2 - b x; any a and b > 0 match the moments 0 to 3
        c4 = (r4 - 4 * mean * r3 + square * (6 * r2 - 3 * square)) / variance**2
        c5 = (r5 - 5 * mean * r4 + square * (10 * r3 - mean * (10 * r2 - 4 * square))) / (variance**2 * deviation)
        b = (c4 - skewness**2 - 1).clamp_min_(1e-6).masked_fill_(narrow, 1)
        a = ((c5 - 2 * skewness * c4 + skewness**3) / b).masked_fill_(narrow, 0)
        third, slope = (a + skewness) / 3, a * skewness - 1 - b
        # With x = t + third, p3 = t^3 - 3 radius^2 t + constant, which has three real roots: Viete's formula.
        radius = (third**2 - slope / 3).sqrt()
        constant = third * (slope - 2 * third**2) + a
        angle = torch.acos((constant / (-2 * radius**3)).clamp_(-1, 1)) / 3
        turns = torch.arange(3, device=total.device).unsqueeze(-1) * (2 * math.pi / 3)
        x = third + 2 * radius * torch.cos(angle - turns)
        weights = 1 / (1 + x**2 + (x**2 - skewness * x - 1) ** 2 / b)
    return weights * (total / weights.sum(0)), mean + deviation * x


def _adamw(params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    """PyTorch's dense AdamW; on a CPU the fused one, which is the quicker by far."""
    if not params:
        return
    b1, b2 = group["betas"]
    adamw(
        params,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True if all(p.device.type == "cpu" for p in params) else None,
        amsgrad=False,
        beta1=b1,
        beta2=b2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


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


def _met(x: Tensor, weight: Tensor, bias: Tensor, sides: bool) -> Tensor:
    """Which nodes and leaves tokens x (T, I) meet: (K, 2 N + 1) bool, breadth first, the N nodes and then the leaves.

    With `sides` also what lies on the other side of each decision, followed to its leaf, as the gradient does.
    """
    K, N, _ = weight.shape
    _, path = tree_feedforward(x, weight, bias, bias.unsqueeze(-1), activation="relu", gradient="none")
    levels = torch.arange(path.logits.shape[-1], -1, -1, device=x.device)
    way = (path.leaf.unsqueeze(-1) + N + 1 >> levels) - 1  # (T, K, D + 1), numbered breadth first
    met = torch.zeros(K, 2 * N + 1, dtype=torch.bool, device=x.device)

    def mark(nodes: Tensor) -> None:
        met.view(-1).index_fill_(0, global_rows(nodes, 2 * N + 1).flatten(), True)

    mark(way)
    here = ((way[..., 1:] - 1) ^ 1) + 1  # the children on the sides not taken, (T, K, D)
    for level in range(here.shape[-1] if sides else 0):
        if level:  # only what began above is at this level
            at = here[..., :level]
            rows = global_rows(at, N).flatten(1)
            z = cmm_in(x, weight.flatten(0, 1).unsqueeze(1), rows).view(at.shape) + bias.flatten()[rows].view(at.shape)
            here = torch.cat([2 * at + 1 + (z >= 0).long(), here[..., level:]], dim=-1)
        mark(here)
    return met
