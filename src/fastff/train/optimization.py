"""Optimiser and learning-rate schedule by the settings of a run."""

import math
from typing import Any

import torch
from torch import nn

from fastff.train.config import TrainConfig


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that `config` names, over all parameters of `model`."""
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum, **common)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), fused=True, **common)
    from fastff.optim import BlockwiseAdam, BlockwiseSGD  # imports TorchDynamo, which takes seconds

    common |= {"model": model, "block_batch": config.block_batch}
    if config.optimizer == "blockwise-sgd":
        return BlockwiseSGD(model.parameters(), momentum=config.momentum, **common)
    return BlockwiseAdam(model.parameters(), **common)


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer, total: int) -> Any:
    """The schedule that `config` names, stepped with the validation accuracy (plateau) or after each step."""
    if config.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.5, patience=config.plateau_epochs, threshold=0, min_lr=1e-6 * config.lr
        )
    warmup = max(1, round(config.warmup * total))

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup)
        return rise * (0.5 * (1 + math.cos(math.pi * min(1.0, step / total))) if config.schedule == "cosine" else 1.0)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
