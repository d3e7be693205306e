"""SGD and Adam whose step waits, block by block, for enough samples: P1's remedy for the shrinking batch.

The harder a tree decides, the fewer samples of a batch reach each leaf, and the noisier its gradient (Belcak &
Wattenhofer, "Fast Feedforward Networks", 2023). Here a block (a node, a leaf, an expert: an index into the leading
dimensions of a parameter) steps only once it has itself seen `block_batch` samples since its last step; until then its
gradient is accumulated, and its parameters, momentum and moments rest: they neither decay nor move.

The gradient a block steps with is the mean over its own samples. `Tensor.grad` comes from a loss averaged over the T
tokens that went through the layer since the last `step()`, so that T * grad is a sum over samples, and a block with
c counted samples uses (sum over steps of T * grad) / c. A block that sees every token steps with the plain gradient.
With gradient accumulation, T counts the tokens of all the forwards: divide the loss by their number, as usual.
"""

import copy
import math
import weakref
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

from fastff.nn import RoutedLayer

_SIZE = ("a finite number of at least 0", lambda v: isinstance(v, int | float) and 0 <= v < math.inf)
REQUIREMENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("lr", "momentum", "eps", "weight_decay"), _SIZE),
    "betas": ("two numbers in [0, 1)", lambda v: isinstance(v, tuple | list) and [0 <= b < 1 for b in v] == [1, 1]),
    "block_batch": ("an int of at least 1", lambda v: type(v) is int and v >= 1),
}


class _CountTokens:
    """Forward hook of a layer: adds the counts of a forward to the optimiser when, and if, its backward runs.

    So neither a recomputed forward (gradient checkpointing) nor one without backward counts. The optimiser is known
    weakly; a hook that was copied or pickled along with its model knows none and does nothing.
    """

    def __init__(self, optimizer: "_Blockwise | None" = None) -> None:
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _CountTokens, ()

    @torch.compiler.disable
    def __call__(self, layer: RoutedLayer, inputs: tuple[Any, ...], output: Tensor) -> None:
        reference = self._optimizer
        if reference is None or not (torch.is_grad_enabled() and layer.training and output.requires_grad):
            return
        counts = {getattr(layer, name): count for name, count in layer.block_counts().items()}
        tokens = math.prod(output.shape[:-1])

        def add(gradient: Tensor) -> None:
            pending = getattr(reference(), "_pending", {})  # of no one if the optimiser is gone
            for p, count in counts.items():
                old_count, old_tokens = pending.get(p, (0, 0))
                pending[p] = (old_count + count, old_tokens + tokens)
            counts.clear()  # a second backward through the same forward brings no new samples

        output.register_hook(add)


class _Blockwise(torch.optim.Optimizer):
    """What both optimisers share: counting, and telling which blocks step with which gradient."""

    _update: Callable[[Tensor, Tensor, Tensor | None, dict[str, Any]], None]  # of a parameter: gradient, due, group

    def __init__(self, params: Any, defaults: dict[str, Any], model: Module) -> None:
        if not isinstance(model, Module):
            raise ValueError(f"model must be a torch.nn.Module, got {model!r}")
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise RuntimeError("block-wise optimisers count the samples of one process: others would step other blocks")
        super().__init__(params, defaults)
        self._model = model
        self._watch()

    def _watch(self) -> None:
        """Hook every routed layer of the model, until this optimiser is gone."""
        self._layers = [module for module in self._model.modules() if isinstance(module, RoutedLayer)]
        self._block_shapes: dict[Tensor, torch.Size] = {}
        self._pending: dict[Tensor, tuple[Tensor, int]] = {}  # samples of each block, tokens; since the last step
        for layer in self._layers:
            weakref.finalize(self, layer.register_forward_hook(_CountTokens(self)).remove)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_model": self._model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_model" in state:  # a copy, not load_state_dict, which comes by here too
            self._watch()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, which may set any of the constructor's numbers; ValueError if one is out of range."""
        for name, value in (self.defaults | param_group).items():
            if name in REQUIREMENTS and not REQUIREMENTS[name][1](value):
                raise ValueError(f"{name} must be {REQUIREMENTS[name][0]}, got {value!r}")
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and with them the samples counted for them (a step may have been left out)."""
        super().zero_grad(set_to_none)
        self._pending.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, so that training goes on bit for bit; see `torch.optim.Optimizer.load_state_dict`."""
        saved = copy.deepcopy(state_dict)  # the state is updated in place: it must not be shared
        super().load_state_dict(saved)
        # The base class casts everything to the dtype of its parameter, which would round counts and sums.
        numbers = chain.from_iterable(group["params"] for group in saved["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, p in zip(numbers, parameters, strict=True):
            entry = saved["state"].get(number, {})
            for key in {"count", "accumulated", "step"} & entry.keys():
                self.state[p][key] = entry[key].to(p.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step; returns what `closure`, called with gradients on, did. ValueError: a gradient is sparse or complex."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        self._find_blocks()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, *self._due(p, p.grad, group["block_batch"]), group)
        self._pending.clear()
        return loss

    def _find_blocks(self) -> None:
        """Learn which parameters are made of blocks: a layer tells once it has run, and without has no gradient."""
        for layer in [layer for layer in self._layers if layer.has_routing]:
            self._block_shapes |= {getattr(layer, name): count.shape for name, count in layer.block_counts().items()}
            self._layers.remove(layer)

    def _due(self, p: Tensor, gradient: Tensor, block_batch: int) -> tuple[Tensor, Tensor | None]:
        """The gradient to step with, and which blocks step (bool, broadcastable to `p`; None: `p` has no blocks)."""
        if gradient.layout != torch.strided or gradient.is_complex():
            raise ValueError(f"grad must be dense and real, got {gradient.layout}, {gradient.dtype}")
        shape = self._block_shapes.get(p)
        if shape is None:
            return gradient, None
        count = self._state(p, "count", shape, torch.int64)
        accumulated = self._state(p, "accumulated", p.shape, torch.promote_types(p.dtype, torch.float32))
        new, tokens = self._pending.get(p, (0, 0))
        # accumulated = sum of T * grad / max(1, count): divided at once, so that a block that sees all T tokens steps
        # with exactly grad, and no 0/0 arises in one that sees none (which soft routing may give a gradient still).
        before = count.clamp_min(1).double()
        count += new
        now = count.clamp_min(1).double()
        accumulated *= _per_block(before / now, p)
        accumulated += gradient * _per_block(tokens / now, p)
        mean, due = accumulated.to(p.dtype, copy=True), count >= block_batch
        count.masked_fill_(due, 0)
        accumulated.masked_fill_(_per_block(due, p), 0)
        return mean, _per_block(due, p)

    def _state(self, p: Tensor, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of the parameter's state, zero at first."""
        if key not in self.state[p]:
            self.state[p][key] = torch.zeros(shape, dtype=dtype, device=p.device)
        return self.state[p][key]


class BlockwiseSGD(_Blockwise):
    """SGD in which a block steps only once it has seen enough samples; see `fastff.optim.blockwise` (P1).

    All other parameters (gates, a master leaf, a shared base, other modules) step at every `step()` exactly as in
    `torch.optim.SGD`. Only forwards of layers in training mode count. Use the optimiser's `zero_grad`.

    Args:
        params: parameters, or parameter groups, each of which may set any of the numbers below.
        lr: learning rate; schedulers may change it.
        model: the module whose `fastff.nn.RoutedLayer`s are counted.
        block_batch: samples that a block must have seen since its last step, at least 1.
        momentum, weight_decay: as in `torch.optim.SGD`; applied to a block only when it steps.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: torch.distributed runs more than one process: each would step other blocks.
    """

    def __init__(
        self, params: Any, lr: float, *, model: Module, block_batch: int, momentum: float = 0, weight_decay: float = 0
    ) -> None:
        defaults = {"lr": lr, "block_batch": block_batch, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, model)

    def _update(self, p: Tensor, gradient: Tensor, due: Tensor | None, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            gradient = gradient.add(p, alpha=group["weight_decay"])
        if group["momentum"]:
            buffer = self._state(p, "momentum_buffer", p.shape, p.dtype)
            _assign(buffer, buffer.mul(group["momentum"]).add_(gradient), due)
            gradient = buffer
        _assign(p, p.add(gradient, alpha=-group["lr"]), due)


class BlockwiseAdam(_Blockwise):
    """AdamW in which a block steps only once it has seen enough samples; see `fastff.optim.blockwise` (P1).

    Moments and bias correction of a block follow its own steps. All other parameters step as in `torch.optim.AdamW`.

    Args:
        params, lr, model, block_batch: as those of `BlockwiseSGD`; errors too.
        betas, eps, weight_decay: as in `torch.optim.AdamW`; betas in [0, 1).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        model: Module,
        block_batch: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "block_batch": block_batch, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, model)

    def _update(self, p: Tensor, gradient: Tensor, due: Tensor | None, group: dict[str, Any]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        step = self._state(p, "step", self._block_shapes.get(p, ()), torch.int64)
        mean, square = (self._state(p, key, p.shape, p.dtype) for key in ("exp_avg", "exp_avg_sq"))
        step += 1 if due is None else due.view(step.shape)
        _assign(mean, mean.lerp(gradient, 1 - beta1), due)
        _assign(square, square.mul(beta2).addcmul_(gradient, gradient, value=1 - beta2), due)
        steps = step.clamp_min(1).double()  # blocks that never stepped are left out by `due`
        rate = _per_block(lr / (1 - beta1**steps), p)
        denominator = (square.sqrt() / _per_block((1 - beta2**steps).sqrt(), p)).to(p.dtype).add_(group["eps"])
        _assign(p, p.mul(1 - lr * group["weight_decay"]) - rate * mean / denominator, due)


def _per_block(value: Tensor, p: Tensor) -> Tensor:
    """A value of each block, broadcastable to `p`; floats at least as precise as float32."""
    if value.is_floating_point():
        value = value.to(torch.promote_types(p.dtype, torch.float32))
    return value.view(*value.shape, *[1] * (p.dim() - value.dim()))


def _assign(target: Tensor, value: Tensor, due: Tensor | None) -> None:
    """Overwrite the blocks that are due, or all where `due` is None."""
    target.copy_(value if due is None else torch.where(due, value, target))
