"""What launches have in common."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from fastff.ops.triton.config import config

SMALLEST = 16  # side of a matrix that the matrix units take


def columns(number: int) -> int:
    """Columns to take at a time where a block has so many."""
    return min(config().columns, max(SMALLEST, triton.next_power_of_2(number)))


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Launch kernels where `x` is, whichever device is the current one."""
    return nullcontext() if x.is_cpu else torch.accelerator.device_index(x.device.index)
