"""Layers of the user's own choice, forward and backward over token counts; the first one is the base."""

from fastff.bench.candidate import LayerCandidate
from fastff.bench.group import Group
from fastff.bench.passes import BACKWARD, FORWARD
from fastff.bench.settings import Settings
from fastff.bench.suites.suite import Suite
from fastff.nn import build_layer

TOKENS = (1, 128, 2048)


def groups(s: Settings) -> list[Group]:
    """Inference at all token counts, training at those above one.

    Raises:
        ValueError: no layer is given, or what is given is none.
    """
    if not s.given:
        raise ValueError("suite given needs layers, such as --layer dense:width=256 --layer tree:depth=4,leaf_width=8")
    candidates = [_candidate(s, text, base=text == s.given[0]) for text in s.given]
    tokens = s.tokens or TOKENS
    return [
        *[Group(FORWARD, count, candidates) for count in tokens],
        *[Group(BACKWARD, count, candidates) for count in tokens if count > 1],
    ]


def _candidate(s: Settings, text: str, *, base: bool) -> LayerCandidate:
    return LayerCandidate(
        label=text,
        series=text,
        kind=text.partition(":")[0],
        make=lambda device: build_layer(text, s.in_features, s.out_features, device=device),
        base=base,
    )


SUITE = Suite("layers of your own, side by side", groups, base="the first")
