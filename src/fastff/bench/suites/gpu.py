"""Layers in bfloat16 over token counts, forward and backward: on NVIDIA cards as CUDA graphs, and ours and the dense
layer also as they are called from Python.
"""

from dataclasses import replace

import torch

from fastff.bench.candidate import LayerCandidate
from fastff.bench.group import Group
from fastff.bench.opponents import Compiled, GroupedExperts
from fastff.bench.passes import BACKWARD, FORWARD
from fastff.bench.settings import Settings
from fastff.bench.suites.layers import bound, dense, moe, tree, tree_shapes, ultra
from fastff.bench.suites.suite import Suite

TOKENS = (1, 16, 256, 2048, 16384, 65536)
FEWEST_TRAINED = 1024  # tokens of a training step
BF16 = torch.bfloat16
ALIGNED = 64  # to which the dense width is rounded up: of rows of 4,095 numbers its products take five times as long


def groups(s: Settings) -> list[Group]:
    wide, narrow = tree_shapes(s)[0], tree_shapes(s)[-1]
    width = -(-s.width // ALIGNED) * ALIGNED
    plain = [dense(s, width, BF16), ultra(s, BF16)]
    both = [
        dense(s, width, BF16, base=True),
        _other(dense(s, width, BF16), "compiled", wrap=Compiled),
        bound(s, dtype=BF16),
        plain[1],
    ]
    experts = moe(s, dtype=BF16)
    shapes = dict.fromkeys((wide, narrow))
    inference = [*both, *(tree(s, *shape, dtype=BF16) for shape in shapes), experts]
    inference.append(_other(experts, "grouped_mm", wrap=GroupedExperts))
    gradients = ("chosen", "sampled", "exact")
    training = [*both, *(tree(s, *wide, gradient, dtype=BF16) for gradient in gradients), experts]
    if s.device == "cuda":
        inference, training = (
            [*(_other(c, "graph", graph=True) for c in list_), *plain] for list_ in (inference, training)
        )
    tokens = s.tokens or TOKENS
    trained = [count for count in tokens if count >= FEWEST_TRAINED]
    return [Group(FORWARD, count, inference) for count in tokens] + [Group(BACKWARD, t, training) for t in trained]


def _other(candidate: LayerCandidate, how: str, **changes: object) -> LayerCandidate:
    label, series = f"{candidate.label}, {how}", f"{candidate.series}, {how}"
    return replace(candidate, label=label, series=series, **changes)  # type: ignore[arg-type]


SUITE = Suite("layers in bfloat16", groups)
