"""P1's speed figure: FFF and mixture of experts of as many leaves as experts, 32 neurons each, and the dense layer.

The three share one set of weights in memory, so that the largest (6.4 GB at 768 features and 2^15 blocks) need it once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastff.bench.candidate import LayerCandidate
from fastff.bench.group import Group
from fastff.bench.passes import FORWARD
from fastff.bench.settings import Settings
from fastff.bench.suites.layers import EXPERT_WIDTH
from fastff.bench.suites.suite import Suite
from fastff.nn import FFF, FeedForward, FeedForwardLayer, MoE
from fastff.nn.layer import uniform_

TOKENS = 2048
SHARED = ("w1", "b1", "w2")  # ends of the parameters' names, in the three layers the same numbers in other shapes


def groups(s: Settings) -> list[Group]:
    """2, 4, 8 .. max_blocks blocks."""
    tokens = (s.tokens or (TOKENS,))[-1]
    return [Group(FORWARD, tokens, _candidates(s, depth)) for depth in range(1, s.max_blocks.bit_length())]


def _candidates(s: Settings, depth: int) -> list[LayerCandidate]:
    I, O, B, W = s.in_features, s.out_features, 2**depth, EXPERT_WIDTH
    pool = _Pool()
    makers: list[tuple[str, str, str, Callable[[Any], FeedForwardLayer]]] = [
        (f"dense {B * W}", "dense", "dense", lambda d: FeedForward(I, O, width=B * W, device=d)),
        (f"MoE {B} x {W}, top 2", "MoE top 2", "moe", lambda d: MoE(I, O, experts=B, expert_width=W, device=d)),
        (f"FFF d{depth} l{W}", f"FFF l{W}", "fff", lambda d: FFF(I, O, depth=depth, leaf_width=W, device=d)),
    ]
    return [
        LayerCandidate(label, series, kind, pool.sharing(make), base=kind == "dense")
        for label, series, kind, make in makers
    ]


class _Pool:
    """The weights of a group, made when the first layer asks for them."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def sharing(self, make: Callable[[Any], FeedForwardLayer]) -> Callable[[Any], FeedForwardLayer]:
        """`make`, with what is shared taken from the pool."""
        return lambda device: make("meta") if device == "meta" else self._filled(make("meta"))

    def _filled(self, layer: FeedForwardLayer) -> FeedForwardLayer:
        for name, p in list(layer.named_parameters()):
            key = name.rpartition("_")[2]
            weight = self.weights.get(key)
            if weight is None:
                weight = torch.empty(p.shape)
                uniform_(weight, layer.in_features)
            if key in SHARED:
                self.weights[key] = weight
            setattr(layer, name, nn.Parameter(weight.view(p.shape)))
        return layer


SUITE = Suite("leaves or experts of 32 neurons, inference", groups, axis="width")
