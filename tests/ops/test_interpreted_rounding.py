"""Interpreted kernels round as PyTorch does."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
import triton
import triton.language as tl


@triton.jit
def copy(x, y, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(y + i, tl.load(x + i).to(y.dtype.element_ty))


@pytest.mark.usefixtures("gpu_kernels")
def test_a_kernel_rounds_to_the_nearest():
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8])
    x, y = torch.cat([torch.randn(56), special]), torch.empty(64, dtype=torch.bfloat16)
    copy[(1,)](x, y, 64)
    assert torch.equal(y, x.to(torch.bfloat16))
