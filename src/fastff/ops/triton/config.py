"""The sizes with which kernels are launched, in one place, so that they can be tuned."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Config:
    """Sizes of tiles, and of the launches. None depends on the number of tokens, as the bits of a row depend on them.

    Attributes:
        tile: slots that are multiplied at a time.
        features: of inputs or outputs that a tile takes at a time.
        columns: of a block, likewise.
        levels: of a block of nodes at most; 6 are 63 nodes.
        warps: of a program.
        stages: of loads under way while a program multiplies.
    """

    tile: int = 64
    features: int = 64
    columns: int = 64
    levels: int = 6
    warps: int = 4
    stages: int = 3

    @property
    def options(self) -> dict[str, int]:
        """Of every launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


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
