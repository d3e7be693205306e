"""What Triton's interpreter lets pass and a GPU does not: accesses outside of the tensors that a kernel is given, and
programs that depend on the order in which they run.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from torch.utils._pytree import tree_leaves

NOBODY, SEVERAL = -1, -2  # in place of a program's number


class Memory:
    """The tensors of the launch that runs, and which of its programs read and wrote each number of them last.

    A program may write what another one has written or read, if that changes nothing.
    """

    def __init__(self, interpreter: Any, builder: Any) -> None:
        self._interpreter, self._builder = interpreter, builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._interpreter, name)

    def begin(self, tensors: Iterator[Tensor]) -> None:
        """A launch to which these are given."""
        bounds = [[0, 0]]  # what lies before all tensors
        for begin, end in sorted(map(_bounds, tensors)):
            if begin < bounds[-1][1]:
                bounds[-1][1] = max(end, bounds[-1][1])
            else:
                bounds.append([begin, end])
        self._begins, self._ends = np.array(bounds).T
        offsets = np.cumsum([0, *(end - begin for begin, end in bounds)])
        self._offsets = offsets[:-1]
        self._reader, self._writer = np.full((2, offsets[-1]), NOBODY, np.int32)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        at, me = self._places(pointers, mask, np.dtype(dtype).itemsize), self._program
        assert _only(me, self._writer[at]).all(), "a program reads what another one writes"
        self._reader[at] = np.where(_only(me, self._reader[at]), me, SEVERAL)
        return self._interpreter.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, values: Any, mask: Any) -> Any:
        at, me = self._places(pointers, mask, values.itemsize), self._program
        own = self._is_own(at, me)
        if not own.all():
            found, values_there = self._interpreter.load(pointers, mask, values, values.dtype)[mask], values[mask]
            same = (found == values_there) | (found != found) & (values_there != values_there)
            assert same[~own].all(), "a program writes what another one reads or writes"
        self._writer[at] = me
        return self._interpreter.store(pointers, values, mask)

    def atomic_rmw(self, operation: Any, pointers: Any, values: Any, mask: Any, order: Any) -> Any:
        at, me = self._places(pointers, mask, values.itemsize), self._program
        assert self._is_own(at, me).all(), "a program adds to what another one reads or writes"
        self._writer[at] = me
        return self._interpreter.atomic_rmw(operation, pointers, values, mask, order)

    @property
    def _program(self) -> int:
        (x, y, z), (_, height, depth) = self._builder.grid_idx, self._builder.grid_dim
        return (x * height + y) * depth + z

    def _is_own(self, at: Any, me: int) -> Any:
        """What no other program has touched."""
        return _only(me, self._reader[at]) & _only(me, self._writer[at])

    def _places(self, pointers: Any, mask: Any, size: int) -> Any:
        """Of what is accessed, all within one tensor each, in the tables of readers and writers."""
        address = pointers[mask].astype(np.int64)
        tensor = np.searchsorted(self._begins, address, side="right") - 1
        inside = address + size <= self._ends[tensor]
        assert inside.all(), f"{np.sum(~inside)} of {inside.size} numbers are outside of all tensors of the launch"
        return self._offsets[tensor] + address - self._begins[tensor]


def _only(me: int, programs: Any) -> Any:
    """Which of them are this one or nobody."""
    return (programs == me) | (programs == NOBODY)


def _bounds(t: Tensor) -> tuple[int, int]:
    """Addresses of the first byte, and behind the last."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (t.itemsize * (last + 1) if t.numel() else 0)


def watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """All launches, until the patches are undone."""
    from triton.runtime import interpreter

    memory = Memory(interpreter._interpreter, interpreter.interpreter_builder)
    initialise = interpreter.GridExecutor._init_args_hst

    def begin(self: Any, arguments: Any, options: Any) -> Any:
        made = initialise(self, arguments, options)
        memory.begin(t for t in tree_leaves(made) if isinstance(t, Tensor))
        return made

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", begin)
    monkeypatch.setattr(interpreter, "_interpreter", memory)
