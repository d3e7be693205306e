"""Layers of the user's own choice, in the precisions they name, forward and backward; the first one is the base."""

from fastff.bench.group import Group
from fastff.bench.passes import BACKWARD, FORWARD
from fastff.bench.precision import layer_candidate
from fastff.bench.settings import Settings
from fastff.bench.suites.suite import Suite

TOKENS = (1, 128, 2048)


def groups(s: Settings) -> list[Group]:
    """Inference at all token counts, training at those above one.

    Raises:
        ValueError: no layer is given, or what is given is none.
    """
    if not s.given:
        raise ValueError("suite given needs layers, such as --layer dense:width=256 --layer tree:depth=4,leaf_width=8")
    candidates = [layer_candidate(s, text, base=text == s.given[0]) for text in s.given]
    trained = [candidate for candidate in candidates if candidate.precision != "int8"]
    tokens = s.tokens or TOKENS
    return [
        *[Group(FORWARD, count, candidates) for count in tokens],
        *[Group(BACKWARD, count, trained) for count in tokens if count > 1 and trained],
    ]


SUITE = Suite("layers of your own, side by side", groups, base="the first")
