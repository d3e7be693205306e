"""The few figures that tell most, in under 40 seconds."""

import torch

from fastff.bench.group import Group
from fastff.bench.passes import BACKWARD, FORWARD
from fastff.bench.settings import Settings
from fastff.bench.suites.layers import bound, dense, moe, tree, tree_shapes, ultra
from fastff.bench.suites.suite import Suite

TOKENS = (1, 128, 2048)


def groups(s: Settings) -> list[Group]:
    """Inference at all token counts, training at the last."""
    tokens = s.tokens or TOKENS
    wide, narrow = tree_shapes(s)[0], tree_shapes(s)[-1]
    base = dense(s, s.width, base=True)
    inference = [
        base,
        dense(s, s.width, torch.bfloat16),
        moe(s),
        ultra(s),
        ultra(s, torch.bfloat16),
        *[tree(s, *shape) for shape in dict.fromkeys((wide, narrow))],
        bound(s),
    ]
    training = [base, moe(s), ultra(s), tree(s, *wide, "chosen"), tree(s, *wide, "exact"), bound(s)]
    return [*[Group(FORWARD, count, inference) for count in tokens], Group(BACKWARD, tokens[-1], training)]


SUITE = Suite("the layers of this shape", groups, rounds=8, budget=2.5)
