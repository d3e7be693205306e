"""Which code runs an operator: the compiled kernels of the tensor's device, or the reference, made of PyTorch's own."""

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

missing = ""  # why the compiled kernels are
try:  # registers the CPU kernels; torch, on whose libraries they rest, has been imported
    import fastff._C as extension  # noqa: N811
except ImportError as error:
    extension, missing = None, str(error)  # type: ignore[assignment]

BACKENDS = ("reference", "cpu", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GPUS = ("cuda", "xpu")  # as torch calls the devices that Triton compiles for; those of AMD are "cuda" too
has_triton = importlib.util.find_spec("triton") is not None

_forced: str | None = None
_warned: set[str] = set()
_on_gpus: dict[str, Callable[..., Any]] = {}  # the Triton implementation of each operator


def backend_of(x: Tensor) -> str:
    """The backend that runs operators on `x`: "cpu" or "triton" (compiled), or "reference"."""
    if x.dtype not in DTYPES or _forced == "reference":
        return "reference"
    if x.is_cpu:
        if _forced == "triton" or extension is not None:
            return _forced or "cpu"
        return _reference("the compiled CPU kernels of fastff are missing")
    if x.device.type in GPUS:
        return (
            "triton" if has_triton else _reference("Triton is missing, in which the GPU kernels of fastff are written")
        )
    return "reference"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within it, operators run on the backend called `name`; for tests and debugging.

    "reference" counts on every device, "cpu" for tensors on the CPU. So does "triton", whose kernels an interpreter
    runs there, slowly, in a process that was started with TRITON_INTERPRET=1.

    Raises:
        ValueError: no such backend.
        RuntimeError: the kernels of that backend are not in this installation, or no interpreter runs.
    """
    global _forced
    _check(name)
    before, _forced = _forced, name
    interpreted = _interpret() if name == "triton" else None
    try:
        yield
    finally:
        _forced = before
        if interpreted is not None:
            interpreted._destroy()


def register_triton(operator: str, module: str, function: str) -> None:
    """Let `function` of `module`, which is imported when it is first needed, run an operator of fastff on GPUs."""
    if has_triton:

        def run(*args: Any) -> Any:
            return getattr(import_module(module), function)(*args)

        _on_gpus[operator] = run
        for device in GPUS:
            torch.library.impl(f"fastff::{operator}", device, run)


def instruction_set() -> str | None:
    """Name of the instruction set of the compiled CPU kernels that run here; None if they are missing."""
    return None if extension is None else extension.instruction_set()


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"name must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "cpu" and extension is None:
        raise RuntimeError(f"the compiled CPU kernels are missing: {missing}")
    if name == "triton" and not has_triton:
        raise RuntimeError("Triton is not installed: pip install triton")


def _interpret() -> torch.library.Library:
    """Let Triton's interpreter run the operators on the CPU, in place of the compiled kernels."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton runs on the CPU in processes started with TRITON_INTERPRET=1 alone")
    library = torch.library.Library("fastff", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it takes the place of others is meant
        for operator, run in _on_gpus.items():
            library.impl(operator, run, "CPU", allow_override=True)
    return library


def _reference(why: str) -> str:
    if why not in _warned and not torch.compiler.is_compiling():
        _warned.add(why)
        warnings.warn(
            f"{why}, so its layers run on the slower reference; `fastff doctor` says why", RuntimeWarning, stacklevel=4
        )
    return "reference"
