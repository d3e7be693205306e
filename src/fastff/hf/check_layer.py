"""Layers by name from files that need not be trusted."""

import torch

from fastff.hf.recommended import with_options
from fastff.nn import build_layer, parse_layer

# More than memory holds. Of a depth of 10^12 in a file even the number of leaves would fill it.
MAX_DEPTH = 32
MAX_NUMBER = 2**31 - 1


def check_layer(text: str) -> None:
    """Raise ValueError or TypeError unless `text` names a layer, of a size that some memory might hold."""
    text = with_options(text, 1)
    for name, value in parse_layer(text)[1].items():
        limit = MAX_DEPTH if name == "depth" else MAX_NUMBER
        if isinstance(value, int) and value > limit:
            raise ValueError(f"layer must have a {name} of at most {limit}, got {text!r}")
    with torch.device("meta"):
        build_layer(text, 1)
