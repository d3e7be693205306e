"""The settings of a training run: everything that its result depends on."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastff.train.layers import parse_layer
from fastff.train.models import MODELS

OPTIMIZERS = ("adamw", "sgd", "blockwise-adam", "blockwise-sgd")
SCHEDULES = ("cosine", "plateau", "constant")
HARDENING_SCHEDULES = ("constant", "warmup", "anneal")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `fastff.train.train`.

    Attributes:
        data: "digits", a hub id, or a local folder or file (see `load_data`).
        input_column, label_column: of the data; found by name if None.
        validation: samples taken off the end of the training data; None: min(5000, 10 %) or the data's own split.
        limit: training samples at most, or None.
        layer: the feedforward layer, e.g. "tree:depth=4,leaf_width=8" (see `parse_layer`).
        model: "mlp" (the layer alone on flattened input) or "vit" (P1's vision transformer).
        epochs: at most.
        batch_size: samples a step, over all processes.
        accumulation: parts that a step's samples are taken in, one after the other.
        optimizer: "adamw", "sgd", or blockwise ("blockwise-adam", "blockwise-sgd": P1's remedy for shrinking batches).
        lr, weight_decay, momentum: of the optimiser (momentum: SGD only).
        block_batch: samples that a block must see before it steps (blockwise optimisers).
        schedule: of the learning rate: "cosine" to 0, "plateau" (halved after plateau_epochs without a better
            validation accuracy), "constant".
        warmup: share of all steps in which the learning rate rises linearly (cosine and constant).
        clip: largest gradient norm, or None.
        hardening, balance, importance, load: weights of the auxiliary losses.
        hardening_schedule: "constant"; "warmup": rising linearly from 0 over all steps; "anneal": falling to 0.
        initialise: set the tree decisions from the training data first (`initialise_from_data`).
        input_dropout: probability with which an input value is left out in training.
        augment: random horizontal flips, and crops after padding by 4 (images).
        patience: epochs without a better validation accuracy after which training ends; None: never.
        precision: "no", "bf16" or "fp16": Accelerate's mixed precision.
        seed: of initialisation, order and noise.
    """

    data: str = "digits"
    input_column: str | None = None
    label_column: str | None = None
    validation: int | None = None
    limit: int | None = None
    layer: str = "tree:depth=4,leaf_width=8"
    model: str = "mlp"
    epochs: int = 20
    batch_size: int = 128
    accumulation: int = 1
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.1
    momentum: float = 0.0
    block_batch: int = 32
    schedule: str = "cosine"
    plateau_epochs: int = 10
    warmup: float = 0.02
    clip: float | None = None
    hardening: float = 0.0
    hardening_schedule: str = "constant"
    balance: float = 0.0
    importance: float = 0.0
    load: float = 0.0
    initialise: bool = False
    input_dropout: float = 0.0
    augment: bool = False
    patience: int | None = None
    precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError that names the setting and its value."""
        parse_layer(self.layer)
        for name, choices in (
            ("model", MODELS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("hardening_schedule", HARDENING_SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "accumulation", "block_batch", "plateau_epochs", "patience", "limit"):
            value = getattr(self, name)
            if value is None and name in ("patience", "limit"):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("lr", "weight_decay", "hardening", "balance", "importance", "load"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
        for name in ("momentum", "warmup", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")
        if self.accumulation > self.batch_size:
            raise ValueError(f"accumulation must be at most batch_size = {self.batch_size}, got {self.accumulation}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any, source: str | Path) -> "TrainConfig":
        """Build from a dictionary; ValueError naming `source` if a setting is unknown."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            unknown = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"{source} holds no training settings: unknown {unknown}")
        return cls(**values)

    @classmethod
    def read(cls, path: Path) -> "TrainConfig":
        """Read the JSON file at `path`; ValueError if it is missing or damaged."""
        try:
            return cls.from_dict(json.loads(path.read_text()), path)
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as training settings: {error}") from None
