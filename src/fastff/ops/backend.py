"""Which implementation of the operators runs: chosen by device, and overridable here, for debugging."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = ("reference", "cpu")
_override: str | None = None


def backend_for(device: torch.device) -> str:
    """The name of the backend that serves `device`: the override if one is in force, else "cpu" or "reference"."""
    if _override is not None:
        return _override
    return "cpu" if device.type == "cpu" else "reference"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operator inside the `with` block on one backend ("reference" or "cpu"), in all threads.

    Raises:
        ValueError: `name` is not a backend.
    """
    global _override
    if name not in BACKENDS:
        raise ValueError(f"name must be one of {', '.join(BACKENDS)}, got {name!r}")
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before
