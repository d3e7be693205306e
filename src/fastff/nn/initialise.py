"""Decisions from data: each node splits the samples that reach it in halves, along their main direction."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastff.nn.layer import whole_number
from fastff.nn.tree_layer import TreeLayer

POWER_ITERATIONS = 15


class _InputTakenError(Exception):
    """Ends a forward early, once the input of the layer in question is known."""


def initialise_from_data(model: nn.Module, batches: Iterable[Any], *, samples: int = 4000, seed: int = 0) -> nn.Module:
    """Set the decisions of every tree in `model` from the inputs that its layer gets, in place.

    Breadth first, each node gets the leading principal direction of the samples that reach it, scaled so that its
    logit has standard deviation 1 on them, and the bias that puts the median at 0; so every leaf starts with an equal
    share of the data. The next tree of a layer takes the leading direction orthogonal to the same node's in the trees
    before it. Layers are set in the order in which they run, each on what the ones before it now put out. Call it
    before wrapping the model (DDP, FSDP) and with the same batches in every process.

    Args:
        model: any module with tree layers (`FFF`, `UltraFFF`, `TreeFeedForward`).
        batches: what `model` is called with, a few batches: a tensor (one argument), a tuple or list (positional
            arguments) or a mapping (keyword arguments) each. Labels are not needed.
        samples: how many tokens a layer is set from at most, the first that come; 1 or more.
        seed: of the power iteration's starting vectors; the result is repeatable.

    Returns:
        `model`.

    Raises:
        ValueError: no batch was given, or a tree layer of `model` never ran on them or saw no token.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer, x_TI in _inputs_in_order(model, batches, samples):
        weight_KNI, bias_KN = layer.decisions()
        with torch.no_grad():
            _set_decisions(x_TI, weight_KNI, bias_KN, generator)
    return model


def _inputs_in_order(model: nn.Module, batches: Iterable[Any], samples: int) -> Iterator[tuple[TreeLayer, Tensor]]:
    """Every tree layer of `model` in the order in which they run, with its first inputs (T, I), float32.

    A layer's inputs are taken when it is its turn: what was done to the layers before it shows in them.
    """
    whole_number("samples", samples, 1)
    kept = list(batches)
    if not kept:
        raise ValueError("batches must hold at least one batch, got none")
    for name, layer in _layers_in_order(model, kept[0]):
        x_TI = _inputs_of(model, layer, kept, samples)
        if x_TI.shape[0] == 0:
            raise ValueError(f"batches must bring tokens to every tree layer, got none for {name!r}")
        with torch.no_grad():
            yield layer, layer.seen(x_TI.float())


def _layers_in_order(model: nn.Module, batch: Any) -> list[tuple[str, TreeLayer]]:
    layers = {module: name for name, module in model.named_modules() if isinstance(module, TreeLayer)}
    order: dict[TreeLayer, str] = {}

    def note(layer: nn.Module, _: Any) -> None:
        assert isinstance(layer, TreeLayer)
        order.setdefault(layer, layers[layer])

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        _call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for module, name in layers.items() if module not in order]
    if missing:
        raise ValueError(f"batches must reach every tree layer; {', '.join(map(repr, missing))} did not run")
    return [(name, module) for module, name in order.items()]


def _inputs_of(model: nn.Module, layer: TreeLayer, batches: list[Any], samples: int) -> Tensor:
    """The first `samples` tokens (T, I) that come to `layer`."""
    taken: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["x"]
        taken.append(x.detach().reshape(-1, layer.in_features))
        raise _InputTakenError

    hook = layer.register_forward_pre_hook(take, with_kwargs=True)
    try:
        for batch in batches:
            try:
                _call(model, batch)
            except _InputTakenError:
                if sum(x.shape[0] for x in taken) >= samples:
                    break
    finally:
        hook.remove()
    return torch.cat(taken)[:samples]


def _call(model: nn.Module, batch: Any) -> None:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            if isinstance(batch, Mapping):
                model(**batch)
            elif isinstance(batch, tuple | list):
                model(*batch)
            else:
                model(batch)
    finally:
        for module, mode in training.items():
            module.training = mode


def _set_decisions(x_TI: Tensor, weight_KNI: Tensor, bias_KN: Tensor, generator: torch.Generator) -> None:
    K, N, _ = weight_KNI.shape
    for k in range(K):
        reaching = {0: x_TI}
        for n in range(N):
            here = reaching.pop(n)
            taken = slice(k - k % x_TI.shape[1], k)  # no more directions are orthogonal than there are features
            direction, bias = _split(here, weight_KNI[taken, n], generator)
            weight_KNI[k, n], bias_KN[k, n] = direction.to(weight_KNI.dtype), bias.to(bias_KN.dtype)
            right = here @ direction + bias >= 0
            reaching[2 * n + 1], reaching[2 * n + 2] = here[~right], here[right]


def _split(x_TI: Tensor, taken_kI: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Direction (I,) of the largest variance orthogonal to `taken`, at unit deviation of the logit, and the bias."""
    T, I = x_TI.shape
    direction = torch.randn(I, generator=generator).to(x_TI)
    direction = direction / direction.norm()
    if T == 0:  # no sample comes here: any direction
        return direction, direction.new_zeros(())
    centred = x_TI - x_TI.mean(0)
    if not centred.norm() > 1e-5 * x_TI.norm():  # all alike but for rounding, which is no direction
        return direction, -_median(x_TI @ direction)
    basis = torch.linalg.qr(taken_kI.float().T).Q if taken_kI.shape[0] else None
    for _ in range(POWER_ITERATIONS):
        image = centred.T @ (centred @ direction)
        if basis is not None:
            image = image - basis @ (basis.T @ image)
        if not image.norm() > 0:  # nothing left beside the directions that are taken
            break
        direction = image / image.norm()
    projection = x_TI @ direction
    deviation = projection.std(unbiased=False)
    if deviation > 0:
        direction, projection = direction / deviation, projection / deviation
    return direction, -_median(projection)


def _median(values: Tensor) -> Tensor:
    """The midpoint of the two middle values, so that an even number is halved."""
    ordered = values.sort().values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
