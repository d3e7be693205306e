"""Where a model computes feedforward functions: found by structure, whatever the model's type."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from fastff.hf.replace.function import (
    FeedForwardFunction,
    Linear,
    function_of,
    has_own_tensors,
    is_activation,
    is_plain,
    sizes,
)
from fastff.hf.replace.trace import trace


def feedforward_modules(model: nn.Module) -> dict[str, FeedForwardFunction]:
    """The feedforward functions in the layers of `model`, by the name of the module whose place a layer would take.

    Found are, in any stack of layers (their names have a number: no heads, no projectors):

    - modules that are just that function of one tensor, gated or not, perhaps with dropout: `model.layers.0.mlp`;
    - pairs `intermediate` and `output`, as in BERT: under the name of the first;
    - two linear layers and an activation directly in a layer with attention, as in BART: under the name of the first.

    Not found are functions with parameters of another kind, or that need more than their input, and fused experts.
    """
    return {
        found: function
        for name, module in model.named_modules()
        if any(part.isdigit() for part in name.split("."))
        for find in (_one_module, _pair, _inlined)
        for found, function in find(name, module)
    }


def _one_module(name: str, module: nn.Module) -> Iterator[tuple[str, FeedForwardFunction]]:
    children = list(module.children())
    linears = [child for child in children if isinstance(child, Linear)]
    if len(linears) not in (2, 3) or not all(isinstance(child, Linear) or is_plain(child) for child in children):
        return
    up, down = linears[0], linears[-1]
    features, inner = sizes(up)
    width, out = sizes(down)
    if out != features or inner not in (width, 2 * width) or has_own_tensors(module):  # 2: gate and up in one
        return
    calls = trace(module, features, up.weight.dtype)
    if [child for child in calls if isinstance(child, Linear)] != linears or calls[0] is not up:
        return
    end = calls.index(down) + 1
    activations = [child for child in calls[:end] if is_activation(child)]
    after = calls[end:]
    if len(activations) == 1 and len(after) <= 1 and all(isinstance(child, nn.Dropout) for child in after):
        parts = {child: part for part, child in module.named_children()}
        named = tuple(f"{name}.{parts[linear]}" for linear in linears)
        yield name, function_of(up, down, activations[0], dropout=after[0] if after else None, linears=named)


def _pair(name: str, module: nn.Module) -> Iterator[tuple[str, FeedForwardFunction]]:
    first: Any = getattr(module, "intermediate", None)
    up: Any = getattr(first, "dense", None)
    down: Any = getattr(getattr(module, "output", None), "dense", None)
    if not isinstance(first, nn.Module) or has_own_tensors(first) or not _maps_back(up, down):
        return
    rest = [child for child in first.children() if child is not up]
    if len(rest) == 1 and is_activation(rest[0]):
        named = (f"{name}.intermediate.dense", f"{name}.output.dense")
        yield f"{name}.intermediate", function_of(up, down, rest[0], others=named[1:], linears=named)


def _inlined(name: str, module: nn.Module) -> Iterator[tuple[str, FeedForwardFunction]]:
    children: dict[str, Any] = dict(module.named_children())
    linears = [part for part, child in children.items() if isinstance(child, Linear)]
    activations = [part for part, child in children.items() if is_activation(child)]
    has_attention = any("attention" in type(child).__name__.lower() for child in children.values())
    if not has_attention or len(linears) != 2 or len(activations) != 1:
        return
    up, down = (children[part] for part in linears)
    if _maps_back(up, down):
        others = (f"{name}.{activations[0]}", f"{name}.{linears[1]}")
        named = tuple(f"{name}.{linear}" for linear in linears)
        found = function_of(up, down, children[activations[0]], others=others, linears=named)
        yield f"{name}.{linears[0]}", found


def _maps_back(up: Any, down: Any) -> bool:
    return isinstance(up, Linear) and isinstance(down, Linear) and sizes(up) == sizes(down)[::-1]
