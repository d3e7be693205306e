"""AdamW whose step costs in proportion to the rows (nodes, leaves) that tokens passed, with dense AdamW's result."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

from fastff.nn.layer import autocasts_input
from fastff.nn.tree_layer import TreeLayer
from fastff.optim.blockwise import REQUIREMENTS
from fastff.optim.dense import adamw_step
from fastff.optim.met import met_blocks
from fastff.optim.rows import MOMENTS, Rows

NARROW = 32  # elements: of shorter rows all are stepped, which is quicker than to keep account of them
CHUNK = 2**18  # elements dealt with at once

_BETAS = ("two numbers in [0, 1), the second above 0", lambda v: REQUIREMENTS["betas"][1](v) and v[1] > 0)


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
        self._rows: dict[Tensor, Rows] = {}  # of the parameters that had a sparse gradient
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
                    self.state[p] |= {key: torch.zeros_like(p) for key in MOMENTS}
                if p in self._trees and p.grad.is_sparse and p.shape[2:].numel() >= NARROW:
                    if p not in self._rows:
                        self._rows[p] = Rows(p, self.state[p], self._space(p))
                    if self._rows[p].step(p.grad, group):
                        continue
                dense[p] = p.grad.to_dense() if p.grad.is_sparse else p.grad
            self._settle(dense)
            adamw_step(list(dense), list(dense.values()), [self.state[p] for p in dense], group)
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
            met = met_blocks(x_TI, weight.to(dtype), bias.to(dtype), sides)
            while weight in self._rows and self._rows[weight].read(met):
                met = met_blocks(x_TI, weight.to(dtype), bias.to(dtype), sides)
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


def _finish(rows: "dict[Tensor, Rows]", handles: list[Any]) -> None:
    """The end of an optimiser: its hooks go, and nothing stays to be made up for."""
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        for r in rows.values():
            r.settle()
