"""Arguments for the compiled operators."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastff.ops import Leaves


def _learning(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return (torch.randn(shape) / max(1, shape[-1]) ** 0.5).to(dtype).requires_grad_()


@pytest.fixture
def tree_arguments() -> Callable[..., list[Any]]:
    """x, node_weight, node_bias, node_out, leaves and base of `tree_feedforward`."""

    def make(
        T: int = 70,
        I: int = 33,
        O: int = 34,
        K: int = 2,
        D: int = 3,
        W: int = 3,
        S: int = 2,
        base: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> list[Any]:
        N, L = 2**D - 1, 2**D

        def leaves(count: int) -> Leaves:
            shapes = ((K, count, W, I), (K, count, W), (K, count, W, O), (K, count, O))
            return Leaves(*(_learning(dtype, shape) for shape in shapes))

        return [
            _learning(dtype, (T, I)).detach().mul(I**0.5).requires_grad_(),
            _learning(dtype, (K, N, I)),
            _learning(dtype, (K, N)),
            _learning(dtype, (K, N, S, O)) if S else None,
            leaves(L) if W else None,
            leaves(1) if W and base else None,
        ]

    return make


@pytest.fixture
def indexed_arguments() -> Callable[..., list[Tensor]]:
    """x, index, w1, b1, w2, b2 and gate of `indexed_feedforward`."""

    def make(
        T: int = 70,
        S: int = 2,
        E: int = 5,
        W: int = 3,
        I: int = 33,
        O: int = 34,
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        index = torch.randint(E, (T, S))
        x, *weights, gate = (
            _learning(dtype, shape) for shape in ((T, I), (E, W, I), (E, W), (E, W, O), (E, O), (T, S))
        )
        return [x, index, *weights, gate]

    return make


@pytest.fixture
def set_threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New tensors hold NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(9).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
