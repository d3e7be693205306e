"""Sizes and options with which all kernels are launched."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

FEATURES = 64  # of inputs or outputs that a tile takes at a time
COLUMNS = 64  # of a block, likewise
SMALLEST = 16  # side of a matrix that the matrix units take
OPTIONS = {"num_warps": 4, "num_stages": 3}


def columns(number: int) -> int:
    """Columns to take at a time where a block has so many."""
    return min(COLUMNS, max(SMALLEST, triton.next_power_of_2(number)))


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Launch kernels where `x` is, whichever device is the current one."""
    return nullcontext() if x.is_cpu else torch.accelerator.device_index(x.device.index)
