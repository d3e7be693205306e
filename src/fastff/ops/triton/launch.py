"""What launches have in common."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from fastff.ops.triton.config import config

SMALLEST = 16  # side of a matrix that the matrix units take
FEW_ENTRIES = 32


def rows_of_tile(number: int) -> int:
    """The rows of the smallest tile that holds so many."""
    return max(SMALLEST, triton.next_power_of_2(number))


def columns(number: int) -> int:
    """Columns to take at a time where a block has so many."""
    return min(config().columns, rows_of_tile(number))


def entries_of_tile(number: int) -> int:
    """Entries of a slot that are read at once, 0 where there are too many for that."""
    return triton.next_power_of_2(max(2, number)) if number <= FEW_ENTRIES else 0


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Launch kernels where `x` is, whichever device is the current one."""
    return nullcontext() if x.is_cpu else torch.accelerator.device_index(x.device.index)
