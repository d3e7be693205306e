"""Accuracy, loss and routing of a model over a whole split."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastff.nn import FFF, RoutedLayer
from fastff.nn.usage import LayerUse, add_use
from fastff.train.data import Data, Split

BATCH = 2048


@dataclass
class Evaluation:
    """Accuracy in percent, mean cross-entropy, seconds of the forwards, and the use of each routed layer by name."""

    accuracy: float
    loss: float
    seconds: float
    layers: dict[str, LayerUse] = field(default_factory=dict)


@contextmanager
def routing_soft(model: nn.Module, soft: bool | None) -> Iterator[None]:
    """Inside the block every `FFF` routes soft (True), hard (False), or as it is set (None)."""
    layers = [m for m in model.modules() if isinstance(m, FFF)] if soft is not None else []
    before = [layer.harden for layer in layers]
    for layer in layers:
        layer.harden = not soft
    try:
        yield
    finally:
        for layer, harden in zip(layers, before, strict=True):
            layer.harden = harden


def can_soften(model: nn.Module) -> bool:
    """Whether the model has layers with another function when evaluated soft."""
    return any(isinstance(m, FFF) and m.depth for m in model.modules())


def evaluate(model: nn.Module, data: Data, split: Split, *, soft: bool = False, accelerator: Any = None) -> Evaluation:
    """Run `model` over `split` in eval mode.

    Args:
        model: (B, *shape) -> (B, classes).
        data: for its normalisation.
        split: what to evaluate.
        soft: route `FFF` layers soft rather than hard.
        accelerator: shares the work between its processes; None: this process does it all.

    Returns:
        The figures over the whole split, the same in every process.
    """
    training = model.training
    model.eval()
    device = next(chain(model.parameters(), model.buffers())).device  # in int8 layers have buffers alone
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    totals = torch.zeros(3, dtype=torch.float64)  # correct, loss, seconds
    layers: dict[str, LayerUse] = {}
    with torch.no_grad(), routing_soft(model, soft):
        for start in range(0, len(split), processes * BATCH):
            mine = slice(start + rank, start + processes * BATCH, processes)  # may be empty: every process does it all
            x = data.normalise(split.inputs[mine].to(device))
            labels = split.labels[mine].to(device)
            began = time.perf_counter()
            logits = model(x).float()
            correct = (logits.argmax(-1) == labels).sum().item()  # waits for the device, so the time is all of it
            seconds = time.perf_counter() - began
            totals += torch.tensor([correct, F.cross_entropy(logits, labels, reduction="sum").item(), seconds]).double()
            add_use(model, layers)
    model.train(training)
    if processes > 1:
        totals = accelerator.reduce(totals.to(device), "sum").cpu()
        for use in layers.values():
            use.map(lambda counts: accelerator.reduce(counts.to(device), "sum").cpu())
    correct, loss, seconds = totals.tolist()
    return Evaluation(100 * correct / len(split), loss / len(split), seconds, layers)


def mean_inputs(model: nn.Module, layer: RoutedLayer, data: Data, split: Split) -> Tensor:
    """The mean of the raw inputs that reach each leaf of the first tree of `layer`, over a split.

    Args:
        model: takes the batches; each sample must be one token of `layer`.
        layer: a tree layer or MoE in it.

    Returns:
        (L, *shape) float32 on the scale of the raw inputs; 0 for a leaf that no sample reaches.
    """
    sums: Tensor | None = None
    counts: Tensor | None = None
    device = next(chain(model.parameters(), model.buffers())).device  # in int8 layers have buffers alone
    model.eval()
    with torch.no_grad():
        for start in range(0, len(split), BATCH):
            raw = split.inputs[start : start + BATCH].to(device)
            model(data.normalise(raw))
            routing = layer.routing
            size = routing.leaf_counts.shape[1]
            if sums is None or counts is None:
                sums, counts = torch.zeros(size, *raw.shape[1:], device=device), torch.zeros(size, device=device)
            leaf = routing.leaf[:, 0]
            sums.index_add_(0, leaf, raw.float())
            counts.index_add_(0, leaf, torch.ones_like(leaf, dtype=torch.float32))
    assert sums is not None
    assert counts is not None
    return (sums / counts.clamp_min(1).view(-1, *[1] * (sums.dim() - 1))).cpu()
