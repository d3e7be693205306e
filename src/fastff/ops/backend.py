"""Which code runs an operator: the compiled kernels of the tensor's device, or the reference, made of PyTorch's own."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

missing = ""  # why the compiled kernels are
try:  # registers the CPU kernels; torch, on whose libraries they rest, has been imported
    import fastff._C as extension  # noqa: N811
except ImportError as error:
    extension, missing = None, str(error)  # type: ignore[assignment]

BACKENDS = ("reference", "cpu")
CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_forced: str | None = None
_warned = False


def backend_of(x: Tensor) -> str:
    """The backend that runs operators on `x`: "cpu" (compiled) or "reference"."""
    if not x.is_cpu or x.dtype not in CPU_DTYPES:
        return "reference"
    if _forced is not None:
        return _forced
    if extension is None:
        _warn()
        return "reference"
    return "cpu"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within it, operators on the CPU run on the backend called `name`; for tests and debugging.

    Raises:
        ValueError: no such backend.
        RuntimeError: the kernels of that backend are not in this installation.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"name must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "cpu" and extension is None:
        raise RuntimeError(f"the compiled CPU kernels are missing: {missing}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def instruction_set() -> str | None:
    """Name of the instruction set of the compiled CPU kernels that run here; None if they are missing."""
    return None if extension is None else extension.instruction_set()


def _warn() -> None:
    global _warned
    if _warned or torch.compiler.is_compiling():
        return
    _warned = True
    warnings.warn(
        "the compiled CPU kernels of fastff are missing, so its layers run on the slower reference; "
        "`fastff doctor` says why",
        RuntimeWarning,
        stacklevel=2,
    )
