"""The sizes with which kernels are launched, in one place, so that they can be tuned."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """Sizes of the launches of one kind.

    Attributes:
        row: bytes of a row that a tile takes at a time.
        warps: of a program.
        stages: of loads under way while a program multiplies.
        few: stages where programs are so few that each has a multiprocessor to itself; 0: the same.
    """

    row: int
    warps: int
    stages: int
    few: int = 0

    def features(self, dtype: torch.dtype) -> int:
        """As many as `row` holds."""
        return self.row // dtype.itemsize


SHORT = Launch(row=128, warps=4, stages=3)  # of kernels that take a few microseconds at most


@dataclass(frozen=True)
class Config:
    """Sizes of tiles, and of the launches. None depends on the number of tokens, as the bits of a row depend on them.

    Attributes:
        tile: slots that are multiplied at a time.
        columns: of a block, likewise, where it has more.
        learned: slots that are added up at a time in gradients of weights.
        levels: of a block of nodes at most; 6 are 63 nodes.
        products: tokens times rows.
        gains: likewise, of several kinds of rows at once.
        sums: of rows times factors.
        alone: of one slot at a time; as a program waits for what it reads, much is read ahead.
        outers: sums over slots of factors times tokens.
    """

    tile: int = 64
    columns: int = 64
    learned: int = 32
    levels: int = 6
    products: Launch = Launch(row=128, warps=4, stages=4, few=8)
    gains: Launch = Launch(row=128, warps=4, stages=3, few=6)
    sums: Launch = Launch(row=128, warps=4, stages=3)
    alone: Launch = Launch(row=128, warps=4, stages=6)
    outers: Launch = Launch(row=256, warps=4, stages=4)


_config = Config()


def config() -> Config:
    """The sizes in use."""
    return _config


@contextmanager
def use_config(**changes: Any) -> Iterator[None]:
    """Within it, kernels are launched with other sizes; a backward must run with those of its forward."""
    global _config
    before, _config = _config, replace(_config, **changes)
    try:
        yield
    finally:
        _config = before
