"""What the GPU kernels promise beside their values: sorted slots, the same bits, all memory written, clear errors, and
that they compile. On the CPU the interpreter runs them.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fastff
from fastff.ops import GRADIENTS, backend_of, indexed_feedforward, tree_feedforward, use_backend
from fastff.ops.tree import plan
from fastff.ops.tree.plan import Plan
from fastff.ops.triton.config import Launch, config, use_config

pytest.importorskip("triton", reason="Triton is not installed")
from triton.runtime.errors import OutOfResources

from fastff.ops.tree.triton import forward
from fastff.ops.triton import group
from fastff.ops.triton.launch import launch

sort_slots = group.sort_slots
pytestmark = pytest.mark.usefixtures("gpu_kernels")


@pytest.fixture
def short_blocks() -> Iterator[None]:
    """Small trees have several blocks."""
    with use_config(levels=2):
        yield


def assert_sorted(found: Any, key: Tensor, groups: int) -> None:
    """By key, stable; every slot of a group in one of its tiles; what has no key in none."""
    slots = torch.arange(key.numel())[(key >= 0) & (key < groups)]
    slots = slots[key[slots].sort(stable=True).indices]
    assert torch.equal(found.order[: len(slots)].long(), slots)
    assert torch.equal(found.bounds, torch.searchsorted(key[slots].contiguous(), torch.arange(groups + 1)))
    tiles = found.tiles[found.tiles[:, 0] >= 0]
    assert len(found.tiles) == found.launches
    in_tiles = []
    for g, first, end in tiles.tolist():
        last = min(end, first + config().tile)
        in_tiles += [(g, place) for place in range(first, last)]
        assert end == found.bounds[g + 1]
    assert in_tiles == [(int(key[slot]), place) for place, slot in enumerate(slots.tolist())]


@pytest.mark.parametrize(("T", "K", "level", "depth"), [(1, 1, 0, 0), (70, 2, 1, 3), (300, 1, 4, 8), (200, 3, 6, 6)])
def test_slots_are_sorted_by_node(T, K, level, depth):
    place = torch.randint(1 << depth, (T, K))
    key = ((torch.arange(K) << level) + (place >> (depth - level))).flatten()
    options = {"trees": K, "level": level, "below": depth - level}
    assert_sorted(sort_slots(place, K << level, **options), key, K << level)
    counts = group.new_counts(place, K << level)
    for row, tile in zip(counts, key.split(64), strict=True):
        row.copy_(tile.bincount(minlength=K << level))
    assert_sorted(sort_slots(place, K << level, **options, counts=counts), key, K << level)


def test_slots_of_one_group_and_of_many_groups():
    assert_sorted(sort_slots(torch.full((300, 1), 7), 9), torch.full((300,), 7), 9)
    place = torch.randint(5000, (200, 1))
    assert_sorted(sort_slots(place, 5000), place.flatten(), 5000)
    outside = torch.tensor([[3], [-1], [2**40], [0], [5]])
    assert_sorted(sort_slots(outside, 5), outside.flatten(), 5)


def test_many_slots_are_sorted_in_rounds_and_shares_are_found_apart(monkeypatch):
    """As tens of thousands are."""
    place = torch.randint(100, (1000, 1))
    for name, value in (("FEW_COUNTS", 0), ("MOST_CHUNKS", 3), ("CHUNKS", 2)):
        monkeypatch.setattr(group, name, value)
        assert_sorted(sort_slots(place, 100), place.flatten(), 100)
    monkeypatch.setattr(group, "MOST_GROUPS", 32)
    assert_sorted(sort_slots(place, 100), place.flatten(), 100)
    monkeypatch.setattr(group, "FEW_COUNTS", 10**6)
    assert_sorted(sort_slots(place, 100), place.flatten(), 100)


def test_walkers_are_sorted_once_they_have_set_out():
    T, K, depth, level = 50, 2, 5, 3
    place = torch.randint(1 << depth, (T, K, depth))
    node = (torch.arange(K) << level).unsqueeze(-1) + (place >> (depth - level))
    options: dict[str, Any] = {"trees": K, "level": level, "below": depth - level}
    away = torch.where(torch.arange(depth) < level, node, -1)
    assert_sorted(sort_slots(place, K << level, walkers=depth, every=False, **options), away.flatten(), K << level)
    assert_sorted(sort_slots(place, K << level, walkers=depth, **options), node.flatten(), K << level)
    levels = torch.randint(depth, (T, K))
    one, node = place[..., :1].contiguous(), node[..., :1]
    away = torch.where(levels.unsqueeze(-1) < level, node, -1)
    assert_sorted(sort_slots(one, K << level, levels=levels, every=False, **options), away.flatten(), K << level)


@pytest.mark.parametrize("depth", range(17))
@pytest.mark.parametrize("width", [0, 1, 3, 32, 100])
def test_a_plan_covers_the_tree(depth, width):
    made = Plan(depth, width, config().levels)
    levels = [first + i for first, count in made.blocks for i in range(count)]
    assert levels == list(range(depth))
    assert all(1 <= count <= config().levels for _, count in made.blocks)
    assert made.first + made.last == depth
    assert made.last == 0 or width << made.last <= plan.NEURONS
    assert made.last <= (made.blocks[-1][1] if made.blocks else 0)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(
    ("sizes", "dtype"),  # T, I, O, K, D, W, S
    [
        ((70, 33, 34, 1, 3, 3, 2), torch.float32),
        ((40, 64, 9, 2, 3, 0, 1), torch.bfloat16),
        ((70, 5, 130, 2, 0, 2, 0), torch.float16),
        ((40, 9, 8, 1, 3, 40, 2), torch.float32),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_row_does_not_depend_on_the_rows_around_it(monkeypatch, tree_arguments, sizes, dtype):
    x, *weights = tree_arguments(*sizes, dtype=dtype)

    def run(rows: Any) -> list[Tensor]:
        y, path = tree_feedforward(x[rows], *weights)
        return [y, path.logits, path.leaf]

    T = len(x)
    expected = run(slice(None))
    # Few slots: a program for each token, which the interpreter runs one after the other.
    for few, tokens in ((0, T + 20), (10**6, 9)):
        monkeypatch.setattr(forward, "FEW", few)
        for rows in (slice(tokens), slice(3, 4), torch.randint(T, (tokens,))):
            for found, e in zip(run(rows), expected, strict=True):
                assert torch.equal(found, e[rows])


@torch.no_grad()
def test_a_row_through_experts_does_not_depend_on_the_rows_around_it(indexed_arguments):
    x, index, *weights, gate = indexed_arguments()
    expected = indexed_feedforward(x, index, *weights, gate=gate)
    for rows in (slice(3, 4), torch.randperm(len(x)), torch.randint(len(x), (150,))):
        assert torch.equal(indexed_feedforward(x[rows], index[rows], *weights, gate=gate[rows]), expected[rows])


def gradients(y: Tensor, arguments: list[Any]) -> list[Tensor]:
    torch.manual_seed(3)
    inputs = [t for t in tree_leaves(arguments) if isinstance(t, Tensor) and t.requires_grad]
    return [y, *torch.autograd.grad(y, inputs, torch.randn_like(y))]


@pytest.mark.usefixtures("short_blocks", "poisoned")
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_all_is_written_and_repeats_bit_for_bit(tree_arguments, gradient):
    for K, D, W, S, base in ((2, 3, 2, 2, True), (1, 3, 0, 1, False), (1, 0, 3, 1, True)):
        runs = []
        arguments = tree_arguments(30, 9, 8, K, D, W, S, base)
        for _ in range(2):
            torch.manual_seed(4)
            y, path = tree_feedforward(*arguments, gradient=gradient)
            runs.append([path.logits, *gradients(y, arguments)])
        assert all(t.isfinite().all() for t in runs[0])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.usefixtures("poisoned")
def test_all_of_experts_is_written_and_repeats_bit_for_bit(indexed_arguments):
    arguments = indexed_arguments(T=9, E=20)  # of which many are named by no token
    *others, gate = arguments
    runs = [gradients(indexed_feedforward(*others, gate=gate), arguments) for _ in range(2)]
    assert all(t.isfinite().all() for t in runs[0])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_layout_in_memory_does_not_matter(tree_arguments):
    def elsewhere(t: Any) -> Any:
        return torch.cat([t, t], -1)[..., : t.shape[-1]] if isinstance(t, Tensor) else t

    arguments = [t.detach() for t in tree_arguments()]
    moved = [elsewhere(t) if isinstance(t, Tensor) else type(t)(*map(elsewhere, t)) for t in arguments]
    assert not moved[0].is_contiguous()
    for a, b in zip(tree_feedforward(*moved)[0], tree_feedforward(*arguments)[0], strict=True):
        assert torch.equal(a, b)


LAYERS = {
    "fff": lambda: fastff.FFF(9, 8, depth=2, leaf_width=3),
    "ultra": lambda: fastff.UltraFFF(9, 8, depth=3, trees=2),
    "tree": lambda: fastff.TreeFeedForward(9, 8, depth=2, leaf_width=2),
    "moe": lambda: fastff.MoE(9, 8, experts=4, expert_width=3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_run_compile_and_run_in_autocast(name, device):
    layer, x = LAYERS[name]().eval(), torch.randn(5, 9)
    y = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), y)
    with torch.autocast(device, dtype=torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert (low - y).norm() < 0.02 * y.norm()
    y.square().sum().backward()
    assert all(p.grad is not None for n, p in layer.named_parameters() if n != "noise_weight")  # of training


def test_operators_pass_opcheck(tree_arguments, indexed_arguments):
    x, weight, bias, out, leaves, base = tree_arguments(T=3, D=2)
    options = (None, torch.randint(2, (3, 2)), 1, 2, False)
    torch.library.opcheck(torch.ops.fastff.tree, (x, weight, bias, out, *leaves, *base, *options))
    weights = [t.detach() for t in (weight, bias, out, *leaves, *base)]
    torch.library.opcheck(torch.ops.fastff.tree_infer, (x.detach(), weights, 1))
    x, index, w1, b1, w2, b2, gate = indexed_arguments(T=3)
    torch.library.opcheck(torch.ops.fastff.indexed, (x, index, w1, b1, w2, b2, gate, None, 1, True))


def test_fewer_loads_are_under_way_where_memory_does_not_hold_them():
    """As a card with less shared memory than an H100 says at the launch."""
    tried = []

    class Kernel:
        def __init__(self, most: int) -> None:
            self.most = most

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def run(number: int, *, BT: int, num_warps: int, num_stages: int, **how: bool) -> None:
                tried.append((grid, number, BT, num_warps, num_stages))
                if num_stages > self.most:
                    raise OutOfResources(10 * num_stages, 10 * self.most, "shared memory")

            return run

    kernel, sizes = Kernel(2), Launch(row=128, warps=4, stages=4)
    for _ in range(2):
        launch(kernel, (3,), sizes, (7,), {"BT": 16})
    assert tried == [((3,), 7, 16, 4, stages) for stages in (4, 3, 2, 2)]
    with pytest.raises(OutOfResources):
        launch(Kernel(0), (3,), sizes, (7,), {"BT": 16})


def test_what_does_not_fit_raises_and_is_named(tree_arguments, indexed_arguments):
    x, *weights = [t.detach() if t is not None else None for t in tree_leaves(tree_arguments())]
    names = ("node_weight", "node_bias", "node_out", "w1", "b1", "w2", "b2", "base_w1", "base_b1", "base_w2", "base_b2")
    for i, name in enumerate(names):
        for wrong in (weights[i].double(), weights[i][..., :1], weights[i].unsqueeze(0)):
            # Where other sizes are taken from what is wrong, it is they that do not fit.
            with pytest.raises(RuntimeError, match=r"\w+ must be" if wrong.shape[-1] == 1 else rf"\b{name} must"):
                torch.ops.fastff.tree(x, *weights[:i], wrong, *weights[i + 1 :], None, None, 1, 3, False)
    for missing in ((3, 4), (7, 8)):
        given = [None if missing[0] <= i < missing[1] else t for i, t in enumerate(weights)]
        with pytest.raises(RuntimeError, match="must be given together"):
            torch.ops.fastff.tree(x, *given, None, None, 1, 3, False)
    with pytest.raises(RuntimeError, match="activation must be from 0 to 4, got 5"):
        torch.ops.fastff.tree(x, *weights, None, None, 5, 3, False)
    with pytest.raises(RuntimeError, match="weights must be .* got 4"):
        torch.ops.fastff.tree_infer(x, weights[:4], 1)
    x, index, *others, _ = (t.detach() for t in indexed_arguments())
    with pytest.raises(RuntimeError, match=r"index must be torch.int64, got torch.int32"):
        indexed_feedforward(x, index.int(), *others)
    with pytest.raises(RuntimeError, match=r"w2 must be of shape \(5, 3, 34\)"):
        indexed_feedforward(x, index, *others[:2], others[2][:, :2], others[3])


def test_an_index_out_of_range_raises(device, indexed_arguments):
    x, index, *others, _ = (t.detach() for t in indexed_arguments())
    if device == "cpu":  # on a GPU the error comes later, and ends the process's use of it
        with pytest.raises(RuntimeError, match="index must hold values from 0 to 4"):
            indexed_feedforward(x, index.clone().fill_(5), *others)


def test_sparse_gradients_are_the_cpu_kernels_alone(tree_arguments):
    arguments = tree_arguments(T=9)
    y, _ = tree_feedforward(*arguments, sparse=True)
    assert not any(g.is_sparse for g in gradients(y, arguments))


def test_the_backend_is_reported(device):
    x = torch.randn(3, 4)
    assert backend_of(x) == "triton"
    assert backend_of(x.double()) == "reference"
    with use_backend("reference"):
        assert backend_of(x) == "reference"


def test_without_the_interpreter_the_cpu_has_no_triton():
    script = (
        "import os; os.environ.pop('TRITON_INTERPRET', None)\n"
        "from fastff.ops import use_backend\n"
        "try:\n    with use_backend('triton'): pass\n"
        "except RuntimeError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "TRITON_INTERPRET=1" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda:90", "cuda:80"])
def test_kernels_compile(tmp_path, target):
    """To code of a GPU that need not be there, every kernel of a training step."""
    script = Path(__file__).with_name("compile_kernels.py")
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    env |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, str(script), target], capture_output=True, text=True, env=env, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "for_other_tokens 0\n" in result.stdout, result.stdout
    made = {line.split()[0] for line in result.stdout.splitlines()}
    kernels = {"descend_block", "gain_block", "spread_block", "outer_blocks", "learn_path", "walk_block"}
    assert made >= kernels | {
        "walk_leaves",
        "count_keys",
        "divide_groups",
        "order_keys",
        "add_parts",
        "add_splits",
        "pass_alone",
        "hidden_block",
    }
