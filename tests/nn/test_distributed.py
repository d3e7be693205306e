"""DDP and FSDP2 in two processes on the CPU (gloo), started once for all layers."""

import copy
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastff.nn import FFF, FeedForward, MoE, TreeFeedForward, UltraFFF, auxiliary_loss, grow, start_growth

WORLD, TOKENS, SECONDS = 2, 3, 150  # three tokens a process: most leaves see none
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: FeedForward(6, 4, width=6),
    "fff": lambda: FFF(6, 4, depth=4, leaf_width=2),
    "fff-hard-master": lambda: FFF(6, 4, depth=4, leaf_width=2, harden=True, master_width=2),
    "ultra": lambda: UltraFFF(6, 4, depth=4, trees=2),
    "tree": lambda: TreeFeedForward(6, 4, depth=4, leaf_width=2),
    "tree-depth0": lambda: TreeFeedForward(6, 4, depth=0, leaf_width=2),
    "trees": lambda: TreeFeedForward(6, 4, depth=2, leaf_width=1, trees=3),  # so one process has two, the other one
    "moe": lambda: MoE(6, 4, experts=8, expert_width=2),
}
CHECKS = {
    "ddp": tuple(LAYERS),
    "fsdp": tuple(name for name in LAYERS if name != "tree-depth0"),  # FSDP2 refuses empty parameters
    "growth": ("tree", "trees"),
}
WEIGHTS = {"hardening": 0.1, "balance": 0.1, "importance": 0.1, "load": 0.1}


def setup(name: str, rank: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """The same layer, a copy of it and the same joint batch in every process, and what is its own of the batch."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(WORLD * TOKENS, 6)
    return layer, copy.deepcopy(layer), x, x[rank * TOKENS : (rank + 1) * TOKENS]


def shard(layer: nn.Module) -> None:
    """FSDP2 over all processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(layer, mesh=init_device_mesh("cpu", (WORLD,)))


def joint_gradients(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    layer(x).square().mean().backward()
    return {name: p.grad for name, p in layer.named_parameters()}


def ddp(name: str, rank: int) -> None:
    layer, single, x, mine = setup(name, rank)
    model = nn.parallel.DistributedDataParallel(layer)
    model(mine).square().mean().backward()
    if name != "moe":  # which draws noise
        expected = joint_gradients(single, x)
        for key, p in layer.named_parameters():
            torch.testing.assert_close(p.grad, expected[key], rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
    for _ in range(2):  # a second step fails where a parameter was left out of the first
        model.zero_grad()
        (model(mine).square().mean() + auxiliary_loss(model, **WEIGHTS)).backward()
    for key, p in layer.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        everywhere = [torch.empty_like(p.grad) for _ in range(WORLD)]
        dist.all_gather(everywhere, p.grad)
        assert torch.equal(everywhere[0], everywhere[1]), key


def fsdp(name: str, rank: int) -> None:
    layer, single, x, mine = setup(name, rank)
    shard(layer)
    assert all(p.to_local().numel() < p.numel() for p in layer.parameters() if p.dim() and p.shape[0] > 1)
    if name == "moe":
        layer.eval(), single.eval()
    torch.testing.assert_close(layer(mine), single(mine), rtol=1e-5, atol=1e-6)
    if name != "moe":
        layer(mine).square().mean().backward()
        expected = joint_gradients(single, x)
        for key, p in layer.named_parameters():
            actual = p.grad.full_tensor()
            torch.testing.assert_close(actual, expected[key], rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
        layer.zero_grad()
    layer.train()
    (layer(mine).square().mean() + auxiliary_loss(layer, **WEIGHTS)).backward()
    for key, p in layer.named_parameters():
        assert p.grad is not None, key
        assert p.grad.full_tensor().isfinite().all(), key


def growth(name: str, rank: int) -> None:
    """Sharded by trees, with the moments of the optimiser, and with the whole tree in what is saved."""
    layer, single, x, mine = setup(name, rank)
    shard(layer)
    both = [(m, torch.optim.AdamW(m.parameters(), lr=0.01, eps=1e-3)) for m in (layer, single)]
    for model, _ in both:
        start_growth(model)
    for step in range(1, 5):
        for model, optimizer in both:
            optimizer.zero_grad()
            model(mine if model is layer else x).square().mean().backward()
            optimizer.step()
            grow(model, step / 4, optimizer)
        assert layer.levels == single.levels > 0
        expected = single.state_dict()
        for key, values in layer.state_dict().items():
            torch.testing.assert_close(
                values.full_tensor(), expected[key], msg=lambda m, k=f"step {step}, {key}": f"{k}: {m}"
            )
    assert layer.levels == layer.depth


def main(rank: int, folder: Path) -> None:
    """One process: every check of every layer; the errors, by check and layer, end in a file."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    errors: dict[str, str] = {}
    for check, names in CHECKS.items():
        for name in names:
            try:
                globals()[check](name, rank)
                failed = False
            except Exception:
                failed, errors[f"{check}-{name}"] = True, traceback.format_exc()
            outcome = torch.tensor(float(failed))
            dist.all_reduce(outcome)  # both are at the same place again
            (folder / f"errors{rank}.json").write_text(json.dumps(errors))
    (folder / f"done{rank}").touch()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    logs = [(folder / f"log{rank}").open("w") for rank in range(WORLD)]
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        for process in processes:
            process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
    found: dict[str, str] = {}
    for rank in range(WORLD):
        if not (folder / f"done{rank}").exists():
            found["all"] = f"process {rank} did not end well:\n{(folder / f'log{rank}').read_text()[-3000:]}"
        if (folder / f"errors{rank}.json").exists():
            found |= json.loads((folder / f"errors{rank}.json").read_text())
    return found


@pytest.mark.parametrize("name", CHECKS["ddp"])
def test_ddp_without_unused_parameters_gives_the_gradients_of_the_joint_batch(errors, name):
    assert "all" not in errors, errors["all"]
    assert f"ddp-{name}" not in errors, errors[f"ddp-{name}"]


@pytest.mark.parametrize("name", CHECKS["fsdp"])
def test_fsdp2_computes_what_the_whole_layer_computes_and_trains_with_auxiliary_losses(errors, name):
    assert "all" not in errors, errors["all"]
    assert f"fsdp-{name}" not in errors, errors[f"fsdp-{name}"]


@pytest.mark.parametrize("name", CHECKS["growth"])
def test_trees_that_fsdp2_shards_grow_as_whole_ones_do(errors, name):
    assert "all" not in errors, errors["all"]
    assert f"growth-{name}" not in errors, errors[f"growth-{name}"]


if __name__ == "__main__":
    main(int(sys.argv[2]), Path(sys.argv[1]))
