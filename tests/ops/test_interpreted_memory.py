"""The watch over the memory of interpreted kernels sees what it is there for."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@pytest.fixture(autouse=True)
def interpreted(gpu_kernels: None, device: str) -> None:
    if device != "cpu":
        pytest.skip("kernels run on the GPU, which no watch sees")


@triton.jit
def copy(x, y, number, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y + i, tl.load(x + i, mask=i < number, other=0), mask=i < number)


@triton.jit
def write_number(y, SAME: tl.constexpr):
    tl.store(y, 7 if SAME else tl.program_id(0))


@triton.jit
def write_own_and_read(y, OF_NEXT: tl.constexpr):
    pid = tl.program_id(0)
    tl.store(y + pid, pid)
    tl.debug_barrier()
    tl.load(y + (1 - pid if OF_NEXT else pid))


@triton.jit
def count(y):
    tl.atomic_add(y, 1)


def test_what_is_outside_of_all_tensors():
    x = torch.arange(10)
    y = torch.empty_like(x)
    copy[(3,)](x, y, 10, B=4)
    assert torch.equal(x, y)
    with pytest.raises(InterpreterError, match="1 of 3 numbers are outside"):
        copy[(3,)](x, y, 11, B=4)
    with pytest.raises(InterpreterError, match="1 of 2 numbers are outside"):
        copy[(3,)](x, y[1:], 10, B=4)
    copy[(3,)](x[:0], y[:0], 0, B=4)


def test_what_depends_on_the_order_of_programs():
    y, z = torch.zeros(4, dtype=torch.int32), torch.arange(4)
    write_number[(3,)](y, SAME=True)
    write_own_and_read[(2,)](y, OF_NEXT=False)
    count[(1,)](y)
    for kernel, options in ((write_number, {"SAME": False}), (write_own_and_read, {"OF_NEXT": True}), (count, {})):
        with pytest.raises(InterpreterError, match="another"):
            kernel[(2,)](y, **options)
    with pytest.raises(InterpreterError, match="a program writes what another one reads"):
        copy[(2,)](z[1:], z, 3, B=2)
    with pytest.raises(InterpreterError, match="a program reads what another one writes"):
        copy[(2,)](z, z[1:], 3, B=2)
