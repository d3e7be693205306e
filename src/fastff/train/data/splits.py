"""What a data set is, once it is in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their classes: `inputs` (n, C, H, W) uint8 or (n, features) float32, `labels` (n,) int64."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Split:
        return Split(self.inputs[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Data:
    """Three splits of one data set, with the statistics of its training split.

    `labels` lie in [0, classes), and `class_names` has one name for each. `mean` and `std` are float32 and come from
    `train` alone: for images per channel, (C, 1, 1), on the scale 0..1; for vectors per feature, (features,). What
    is constant has a `std` of 1.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W) or (features,)."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def features(self) -> int:
        """Numbers in one sample: the product of `shape`."""
        return math.prod(self.shape)

    def normalise(self, inputs: Tensor) -> Tensor:
        """A batch (n, *shape) of raw inputs -> float32 on the same device, less `mean`, by `std`."""
        scaled = inputs.float() / 255 if self.train.inputs.dtype == torch.uint8 else inputs.float()
        return (scaled - self.mean.to(inputs.device)) / self.std.to(inputs.device)
