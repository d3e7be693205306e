"""Forward of one layer over token counts, against all that could stand in its place."""

import torch

from fastff.bench.candidate import LayerCandidate
from fastff.bench.group import Group
from fastff.bench.opponents import GatherBmm, Int8, LinearPair, OnReference
from fastff.bench.passes import FORWARD
from fastff.bench.settings import Settings
from fastff.bench.suites.layers import bound, dense, moe, tree, tree_shapes, ultra
from fastff.bench.suites.suite import Suite

TOKENS = (1, 16, 128, 2048, 16384)


def groups(s: Settings) -> list[Group]:
    layer = ultra(s)
    candidates = [
        dense(s, s.width, base=True),
        _renamed(dense(s, s.width), ", nn.Linear", wrap=LinearPair),
        dense(s, s.width, torch.bfloat16),
        _renamed(dense(s, s.width), " int8", wrap=Int8, precision="int8"),
        bound(s),
        layer,
        ultra(s, torch.bfloat16),
        *[tree(s, *shape) for shape in tree_shapes(s)],
        moe(s),
        _renamed(layer, ", gather + bmm", wrap=GatherBmm),
        _renamed(layer, ", reference", wrap=OnReference),
    ]
    return [Group(FORWARD, tokens, candidates) for tokens in s.tokens or TOKENS]


def _renamed(candidate: LayerCandidate, suffix: str, *, wrap: type, precision: str = "") -> LayerCandidate:
    return LayerCandidate(
        candidate.label + suffix,
        candidate.series + suffix,
        candidate.kind,
        candidate.make,
        candidate.dtype,
        wrap=wrap,
        precision=precision,
    )


SUITE = Suite("inference", groups)
