"""Shared fixtures: seeds, the layers under test, tools that watch what a call allocates."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before it is imported: what a test asks for and is not here fails at once

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import interpreted_arithmetic
import interpreted_launches
import interpreted_memory
from fastff.nn import FFF, PEER, FeedForward, MoE, TreeFeedForward, UltraFFF
from fastff.ops import GRADIENTS, cmm_in, cmm_out, cmm_outer, descend, use_backend

pytest.register_assert_rewrite("kernel_cases")  # what it compares is shown where it differs
DEVICE = os.environ.get("FASTFF_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported
IN, OUT = 6, 5


class Variant(NamedTuple):
    """A layer under test: how to make it (6 -> 5 features), and whether its training draws random numbers."""

    name: str
    make: Callable[..., nn.Module]
    random: bool = False

    def __call__(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        layer = self.make(dtype=dtype)
        with torch.no_grad():  # no parameter may stand at 0, where a mistake would not show
            for p in layer.parameters():
                p.add_(0.05 * torch.randn_like(p))
        return layer


def _variant(name: str, kind: type[nn.Module], random: bool = False, **options: Any) -> Variant:
    return Variant(name, lambda dtype: kind(IN, OUT, dtype=dtype, **options), random)


VARIANTS = [
    _variant("dense", FeedForward, width=7),
    _variant("dense-dropout", FeedForward, True, width=7, dropout=0.3),
    _variant("fff", FFF, depth=3, leaf_width=2, activation="gelu"),
    _variant("fff-depth0", FFF, depth=0, leaf_width=3),
    _variant("fff-master", FFF, depth=2, leaf_width=2, master_width=3, activation="silu"),
    _variant("fff-leak", FFF, True, depth=2, leaf_width=2, region_leak=0.3),
    _variant("fff-dropout", FFF, True, depth=2, leaf_width=2, dropout=0.3, master_width=2),
    _variant("fff-hard", FFF, depth=2, leaf_width=2, harden=True),
    _variant("ultra", UltraFFF, depth=3),
    _variant("ultra-depth0", UltraFFF, depth=0, trees=4),
    _variant("ultra-trees3", UltraFFF, depth=2, trees=3, activation="silu"),
    *[_variant(f"tree-{g}", TreeFeedForward, g == "sampled", depth=3, leaf_width=2, gradient=g) for g in GRADIENTS],
    _variant("tree-depth0", TreeFeedForward, depth=0, leaf_width=3),
    _variant("tree-one-sided", TreeFeedForward, depth=2, leaf_width=1, two_sided=False, trees=2),
    _variant("tree-no-base", TreeFeedForward, depth=2, leaf_width=2, shared_base=False, activation="relu"),
    _variant("tree-rank", TreeFeedForward, depth=2, leaf_width=2, trees=2, rank=4),
    _variant("tree-leaves-alone", TreeFeedForward, depth=3, leaf_width=1, rank=3, contributing=False, leaf_bias=False),
    _variant("tree-master", TreeFeedForward, depth=2, leaf_width=1, rank=3, contributing=False, master_width=2),
    _variant("tree-gated", TreeFeedForward, depth=2, leaf_width=2, contributing=False, gated=True, activation="silu"),
    _variant("dense-gated", FeedForward, width=7, gated=True, activation="silu"),
    _variant("moe-gated", MoE, True, experts=4, expert_width=2, gated=True, activation="silu"),
    _variant("moe-top1", MoE, True, experts=4, expert_width=2, top_k=1),
    _variant("moe", MoE, True, experts=4, expert_width=2, activation="gelu"),
    _variant("moe-loss-free", MoE, experts=4, expert_width=2, noise=False, loss_free=True),
    _variant("peer", PEER, experts=16, heads=3, top_k=2, key_features=4),
    _variant("peer-rank", PEER, experts=16, heads=2, top_k=2, key_features=4, rank=3, master_width=4),
    _variant("peer-dropout", PEER, True, experts=9, heads=2, top_k=3, key_features=6, activation="relu", dropout=0.3),
    _variant("moe-all", MoE, True, experts=3, expert_width=2, top_k=3, dropout=0.2),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`variant` is every layer, `quick_variant` one of each kind, `calm_variant` those whose training draws nothing."""
    quick = {"dense", "fff", "ultra-trees3", "tree-exact", "moe", "peer"}
    chosen = {
        "variant": VARIANTS,
        "quick_variant": [v for v in VARIANTS if v.name in quick],
        "calm_variant": [v for v in VARIANTS if not v.random],
    }
    for name, variants in chosen.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, variants, ids=[v.name for v in variants])


@pytest.fixture(autouse=True, scope="session")
def device() -> Iterator[str]:
    """Where all tensors are: on the CPU, or on a GPU with FASTFF_TEST_DEVICE=cuda, as in `make gpu-check`."""
    with torch.device(DEVICE) if DEVICE != "cpu" else nullcontext():
        yield DEVICE


@pytest.fixture
def gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Triton kernels run: on a GPU, or interpreted on the CPU, where fewer slots go alone, to save time."""
    pytest.importorskip("triton")
    if DEVICE == "cpu":
        interpreted_launches.patch_once(monkeypatch)
        interpreted_memory.watch(monkeypatch)
        interpreted_arithmetic.round_to_nearest(monkeypatch)
        interpreted_arithmetic.sum_in_double(monkeypatch)
        monkeypatch.setattr("fastff.ops.tree.triton.forward.FEW", 30)
    with use_backend("triton") if DEVICE == "cpu" else nullcontext():
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# What stands behind the operators, so that a watch sees what they allocate too.
_INSIDE = {f"fastff::{op.__name__}": op for op in (o._init_fn for o in (cmm_in, cmm_out, cmm_outer, descend))}


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inside = _INSIDE.get(func.name())
        if inside is not None:
            with self:
                return inside(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
                self.shapes.add(tuple(t.shape))
        return result


@pytest.fixture
def watch() -> Callable[[], Any]:
    """A context manager whose value has `largest`, the numel of the largest output of any operation, and `shapes`."""

    @contextmanager
    def watching() -> Iterator[_Watch]:
        with _Watch() as mode:
            yield mode

    return watching
