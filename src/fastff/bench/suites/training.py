"""Forward and backward of one layer over token counts: gradients of the input and of every parameter."""

from fastff.bench.group import Group
from fastff.bench.passes import BACKWARD
from fastff.bench.settings import Settings
from fastff.bench.suites.layers import bound, dense, moe, tree, tree_shapes, ultra
from fastff.bench.suites.suite import Suite

TOKENS = (128, 2048, 16384)
GRADIENTS = ("chosen", "sampled", "exact")


def groups(s: Settings) -> list[Group]:
    candidates = [
        dense(s, s.width, base=True),
        bound(s),
        ultra(s),
        ultra(s, sparse=True),
        *[tree(s, *shape, gradient) for shape in tree_shapes(s)[:2] for gradient in GRADIENTS],
        moe(s),
    ]
    return [Group(BACKWARD, tokens, candidates) for tokens in s.tokens or TOKENS]


SUITE = Suite("forward and backward", groups)
