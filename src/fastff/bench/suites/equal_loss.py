"""Speed at equal loss: the layers of small decoders whose losses are known, in every precision.

One forward of few and many tokens, one token through layers that take turns, so that weights are in no near cache, as
in a model of as many layers, and training, with gradients that hold all rows or those in use alone.
"""

import copy
from typing import Any

from torch import Tensor, nn

from fastff.bench.candidate import LayerCandidate
from fastff.bench.equal_loss import read_losses
from fastff.bench.group import Group
from fastff.bench.passes import BACKWARD, FORWARD
from fastff.bench.precision import has_int8, has_sparse, layer_candidate
from fastff.bench.settings import Settings
from fastff.bench.suites.suite import Suite

TOKENS = (1, 16, 128, 4096)
TRAINED = (128, 4096)
LAYERS = 12
IN_TURN = f"forward, {LAYERS} layers in turn"
MOST_BYTES = 1 << 32  # of the layers that take turns


class InTurn(nn.Module):
    """Copies of a layer of which each call runs the next."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.definition = getattr(layer, "definition", layer)
        self.layers = [layer, *(copy.deepcopy(layer) for _ in range(LAYERS - 1))]
        self.at = 0

    def forward(self, x: Tensor) -> Tensor:
        self.at = (self.at + 1) % LAYERS
        y: Tensor = self.layers[self.at](x)
        return y


def groups(s: Settings) -> list[Group]:
    """Of all layers whose losses are known.

    Raises:
        ValueError: no losses are given, or the file is none of `examples/compare_decoders.py`.
    """
    names = [layer.text for layer in read_losses(s.losses)]

    def candidates(*precisions: str, **options: Any) -> list[LayerCandidate]:
        chosen = [(name, p) for name in names for p in precisions if p != "int8" or has_int8(name)]
        return [layer_candidate(s, f"{name}@{p}", **options) for name, p in chosen]

    every = ("float32", "bfloat16", "int8")
    trained = candidates("float32") + [layer_candidate(s, name, sparse=True) for name in names if has_sparse(name)]
    turns = [c for c in candidates(*every, wrap=InTurn) if LAYERS * c.weight_bytes <= MOST_BYTES]
    return [
        *[Group(FORWARD, count, candidates(*every)) for count in s.tokens or TOKENS],
        Group(IN_TURN, 1, turns),
        *[Group(BACKWARD, count, trained) for count in s.tokens or TRAINED if count > 1],
    ]


SUITE = Suite("layers of decoders whose losses are known", groups, base="-")
