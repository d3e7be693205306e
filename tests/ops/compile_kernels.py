"""Compile every kernel that a training step launches for a GPU that need not be there, and say what came of it.

python tests/ops/compile_kernels.py cuda:90   # kernel, shared memory, whether it uses the matrix units
"""

import sys
import warnings
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

warnings.simplefilter("ignore")
kind, arch = sys.argv[1].split(":")
target = GPUTarget(kind, int(arch) if arch.isdigit() else arch, 32 if kind == "cuda" else 64)


class Driver:
    """What Triton asks of a GPU to compile for it."""

    def get_current_target(self) -> GPUTarget:
        return target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


launch, seen = JITFunction.run, set()


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    kernel = launch(self, *args, grid=grid, warmup=True, **options)
    if kernel.hash not in seen:
        seen.add(kernel.hash)
        code = kernel.asm.get("ptx") or kernel.asm.get("amdgcn") or ""
        units = next((u for u in ("wgmma", "mma.sync", "mfma") if u in code), "none")
        print(self.fn.__name__, kernel.metadata.shared, units, flush=True)
    return kernel


triton.runtime.driver.set_active(Driver())
JITFunction.run = compile_only

from fastff.ops.tree.triton import tree, tree_backward  # noqa: E402


def train(T: int, I: int, K: int, D: int, W: int, S: int, dtype: torch.dtype, gradient: int) -> None:
    """A forward and backward on memory that nobody fills; S output rows of nodes and of neurons of leaves."""

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    N, L = 2**D - 1, 2**D
    rows = (2, I) if S == 2 else (I,)
    leaves = [zeros(K, L, W, I), zeros(K, L, W), zeros(K, L, W, *rows), zeros(K, L, I)] if W else [None] * 4
    tensors = [zeros(T, I), zeros(K, N, I), zeros(K, N), zeros(K, N, S, I), *leaves, *[None] * 4]
    y, logits, leaf, hidden = tree(*tensors, None, None, 1, gradient, False)
    levels = torch.zeros(T, K, dtype=torch.int64)
    needs = sum(1 << i for i, t in enumerate(tensors) if t is not None)
    tree_backward(y, None, *tensors, None, logits, leaf, hidden, levels, 1, gradient, needs, False)


train(17000, 768, 2, 12, 1, 2, torch.bfloat16, 1)
compiled = len(seen)
train(9999, 768, 2, 12, 1, 2, torch.bfloat16, 1)
print("for_other_tokens", len(seen) - compiled)
train(1024, 768, 1, 7, 70, 2, torch.bfloat16, 3)  # more neurons in a leaf than a tile takes
train(4, 64, 1, 2, 80, 2, torch.bfloat16, 0)
