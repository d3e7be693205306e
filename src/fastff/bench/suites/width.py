"""Forward at one token count against the training width: the cost of a tree grows with its logarithm."""

from dataclasses import replace

import torch

from fastff.bench.group import Group
from fastff.bench.passes import FORWARD
from fastff.bench.settings import Settings
from fastff.bench.suites.layers import EXPERT_WIDTH, dense, fff, tree, ultra
from fastff.bench.suites.suite import Suite

TOKENS = 2048
NARROWEST = 6  # its logarithm


def groups(s: Settings) -> list[Group]:
    """Widths 2^6 .. max_width, of which the trees have about as many neurons; all of one tree. On a GPU every
    second of them, in bfloat16, on NVIDIA's as CUDA graphs.
    """
    found = []
    step = 1 if s.device == "cpu" else 2  # each width of each tree is compiled anew
    for power in range(NARROWEST, s.max_width.bit_length(), step):
        one = replace(s, depth=power - 1, trees=1)
        candidates = [
            dense(s, 2**power, base=True),
            ultra(one),
            tree(one, power - 1, 1),
            tree(one, power - 3, 8),
            fff(one, power - EXPERT_WIDTH.bit_length() + 1, EXPERT_WIDTH),
        ]
        if s.device != "cpu":
            candidates = [replace(c, dtype=torch.bfloat16, graph=s.device == "cuda") for c in candidates]
        found.append(Group(FORWARD, (s.tokens or (TOKENS,))[-1], candidates))
    return found


SUITE = Suite("inference against the training width", groups, axis="width")
