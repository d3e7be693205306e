"""What this installation can do and what it lacks."""

import importlib.metadata
import os
import platform

import torch

import fastff
from fastff.ops import backend as ops

EXTRAS = {  # as in pyproject.toml
    "hf": ("accelerate", "datasets", "jinja2", "tokenizers", "transformers"),
    "train": (
        *("accelerate", "datasets", "jinja2", "matplotlib", "numpy", "pillow", "rich"),
        *("scikit-learn", "tensorboard", "typer"),
    ),
}


def report() -> list[tuple[str, str]]:
    """Pairs of what was asked and the answer: versions, devices, threads, backends, missing packages."""
    rows = [
        ("fastff", fastff.__version__),
        ("Python", platform.python_version()),
        ("PyTorch", torch.__version__),
        ("processor", f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"),
        ("threads", f"{torch.get_num_threads()} of PyTorch, {os.cpu_count()} cores"),
        ("GPU", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none"),
    ]
    found = ops.instruction_set()
    rows.append(("CPU operators", f"compiled, for {found}" if found else f"missing, the reference runs: {ops.missing}"))
    rows.append(("GPU operators", _gpu_operators()))
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if _version(name) is None]
        found = ", ".join(f"{name} {_version(name)}" for name in packages if name not in missing)
        rows.append((f"extra '{extra}'", found or "nothing"))
        if missing:
            rows.append(("missing", f"{', '.join(missing)}: pip install 'fastff[{extra}]'"))
    return rows


def _gpu_operators() -> str:
    """Of which GPU Triton compiles them, or why not."""
    if not ops.has_triton:
        return "missing, the reference runs: Triton is not installed (pip install triton)"
    accelerator = torch.accelerator.current_accelerator()
    here = "no GPU is here" if accelerator is None else f"for {accelerator.type}"
    return f"Triton {_version('triton')}, {here}"


def print_report() -> None:
    """Print the report, a line for each pair."""
    for name, value in report():
        print(f"{name + ':':<18} {value}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
