"""What launches have in common."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver
from triton.runtime.errors import OutOfResources

from fastff.ops.triton.config import Launch, config
from fastff.ops.triton.kernels.columns import INTERPRETED, SMALLEST

MULTIPROCESSORS = 128  # about as many as a large card has
FEW_ENTRIES = 64  # of a slot: where there are more, they are read column by column
LEAST_ENTRIES = 8  # the compiler of gathers wants a tile to have at least as many as a program has threads
_fitting: dict[tuple[Any, ...], int] = {}  # stages of launches, where they are fewer than asked for


def divided(number: int, by: int) -> int:
    """Rounded up. Triton's own functions, made for kernels too, take a launch's time."""
    return -(-number // by)


@cache
def power_of_two(number: int) -> int:
    """The smallest that is not below; 1 for 0."""
    return 1 << max(number - 1, 0).bit_length()


def rows_of_tile(number: int) -> int:
    """The rows of the smallest tile that holds so many."""
    return max(SMALLEST, power_of_two(number))


def columns(number: int) -> int:
    """Columns to take at a time where a block has so many."""
    return min(config().columns, rows_of_tile(number))


def entries_of_tile(number: int) -> int:
    """Entries of a slot that are read at once, 0 where there are too many for that."""
    return max(LEAST_ENTRIES, power_of_two(number)) if number <= FEW_ENTRIES else 0


def launch(
    kernel: Any, grid: tuple[int, ...], sizes: Launch, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Launch a kernel with the warps and stages of `sizes`, or with fewer stages where a card's shared memory does not
    hold them; the results are the same.
    """
    stages = sizes.few if sizes.few and prod(grid) <= MULTIPROCESSORS else sizes.stages
    early = not INTERPRETED and _starts_early(driver.active.get_current_device())
    constants = {**constants, "EARLY": early}
    if early:
        constants["launch_pdl"] = True
    while True:
        if _fitting:
            stages = min(stages, _fitting.get(_key(kernel, sizes, constants), stages))
        try:
            kernel[grid](*arguments, **constants, num_warps=sizes.warps, num_stages=stages)
            return
        except OutOfResources:
            if stages == 1:
                raise
            _fitting[_key(kernel, sizes, constants)] = stages - 1


@cache
def _starts_early(device: int) -> bool:
    """Whether kernels can be launched on the device, the current one, while the one before them runs."""
    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 90


def _key(kernel: Any, sizes: Launch, constants: dict[str, Any]) -> tuple[Any, ...]:
    return (id(kernel), sizes, *constants.values())


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Launch kernels where `x` is, whichever device is the current one."""
    return nullcontext() if x.is_cpu else torch.accelerator.device_index(x.device.index)
