"""Layers by name, so that one string on a command line says which layer is meant: `tree:depth=4,leaf_width=8`."""

import inspect
from typing import Any

from fastff.nn.feedforward import FeedForward
from fastff.nn.fff import FFF
from fastff.nn.layer import FeedForwardLayer
from fastff.nn.moe import MoE
from fastff.nn.peer import PEER
from fastff.nn.tree_feedforward import TreeFeedForward
from fastff.nn.ultra_fff import UltraFFF

LAYERS: dict[str, type[FeedForwardLayer]] = {
    "dense": FeedForward,
    "moe": MoE,
    "peer": PEER,
    "fff": FFF,
    "ultra": UltraFFF,
    "tree": TreeFeedForward,
}


def parse_layer(text: str) -> tuple[type[FeedForwardLayer], dict[str, Any]]:
    """Split `name:option=value,...` into the layer class and its options.

    Names: dense, moe, peer, fff, ultra, tree. Values are ints, floats, true, false or words.

    Raises:
        ValueError: unknown name or option, an option without a value, or one that is missing.
    """
    name, _, rest = text.partition(":")
    if name not in LAYERS:
        raise ValueError(f"layer must be one of {', '.join(LAYERS)}, got {name!r} in {text!r}")
    layer = LAYERS[name]
    known = [
        p.name
        for p in inspect.signature(layer).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in ("device", "dtype")
    ]
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals or key not in known:
            raise ValueError(f"layer {name!r} takes {', '.join(known)}; got {item!r} in {text!r}")
        options[key] = parse_value(value)
    return layer, options


def build_layer(text: str, in_features: int, out_features: int | None = None, **defaults: Any) -> FeedForwardLayer:
    """Build the layer that `text` names (see `parse_layer`); `defaults` are options that `text` may override.

    Raises:
        ValueError, TypeError: `text` is no layer, or an option is missing, of the wrong type or out of range, or the
            layer is larger than the memory.
    """
    layer, options = parse_layer(text)
    try:
        return layer(in_features, out_features, **(defaults | options))
    except TypeError as error:
        if "missing" in str(error):
            raise ValueError(f"layer {text!r}: {str(error).partition('() ')[2]}") from None
        raise
    except RuntimeError as error:  # PyTorch's words for it say bytes, but not of what
        if any(word in str(error) for word in ("allocate", "overflow")):
            raise ValueError(f"layer {text!r} of {in_features} features is too large: {error}") from None
        raise


def parse_value(text: str) -> Any:
    """An int, float, true or false, or else the word itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
