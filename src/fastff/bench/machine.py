"""What a speed depends on beside the code: the processor, its caches, threads, versions. No names, no paths."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import fastff
from fastff import ops

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
GROUP = Path("/sys/fs/cgroup")


def versions() -> dict[str, str]:
    """Versions of what is measured; of Transformers and Triton where they are in use."""
    found = {"fastff": fastff.__version__, "torch": torch.__version__, "python": platform.python_version()}
    used = {name: sys.modules.get(name) for name in ("transformers", "triton")}
    return found | {name: module.__version__ for name, module in used.items() if module is not None}


def machine() -> dict[str, Any]:
    """The processor: its name, cores, caches in bytes, and the instruction sets of our kernels and of PyTorch."""
    return {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "instruction_set": ops.instruction_set(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        **gpu(),
    }


def gpu() -> dict[str, Any]:
    """The GPU that is the default device: its name, memory in bytes, multiprocessors, version of CUDA or ROCm."""
    device = torch.get_default_device()
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda or torch.version.hip,
    }


def wait(device: torch.device) -> None:
    """Until all that was launched on the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def cpu_name() -> str:
    """Its name as the system gives it; "unknown" where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def caches() -> dict[str, int]:
    """Bytes of the data caches by name ("L1", "L2", "L3"), as far as the system tells."""
    found = {}
    for folder in sorted(CACHES.glob("index*")):
        try:
            kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
            if kind != "Instruction":
                found[f"L{level}"] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return found


def free_memory() -> int | None:
    """Bytes that this process can still take, of the machine's and of its control group's; None where none is known."""
    if torch.get_default_device().type != "cpu":
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        most, used = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(most - used)
    except (OSError, ValueError):  # "max" is no number
        pass
    return min(found, default=None)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within it, PyTorch and the compiled kernels use `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
