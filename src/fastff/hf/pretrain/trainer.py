"""Hugging Face's Trainer with a budget for its schedule, and a batch that grows."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from fastff.hf.auxiliary import AuxiliaryLossTrainer
from fastff.hf.pretrain.data import Batch
from fastff.hf.pretrain.schedule import Progress, lr_factor
from fastff.nn import FeedForwardLayer
from fastff.nn.layer import is_bias


class PretrainTrainer(AuxiliaryLossTrainer):
    """One step of Trainer is one batch of `TrainingBatches`, taken in parts of `config.batch_size` sequences.

    So Trainer's own accumulation stays at 1, and a step may be of any size.
    """

    def __init__(self, progress: Progress, **kwargs: Any) -> None:
        super().__init__(balance=progress.config.balance_weight, **kwargs)
        self.progress = progress

    def get_train_dataloader(self) -> DataLoader:
        # A loader draws a seed for its workers when it starts, and a resumed run starts one more: so none of the global
        # generator's.
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_size=None, generator=torch.Generator())

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decayed_names(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            factor: Callable[[int], float] = lambda _: lr_factor(self.progress.config, self.progress.share)  # noqa: E731
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            self.lr_scheduler = LambdaLR(optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Gradients of the mean over the whole batch, part by part; returns that mean without the auxiliary losses.

        Every sequence has as many labels, so the mean over the parts is the mean over all labels.
        """
        size = self.progress.config.batch_size
        count = next(iter(inputs.values())).shape[0] // size
        self.current_gradient_accumulation_steps = count  # which super() divides by
        total = torch.zeros((), device=self.args.device)
        for i in range(count):
            part = {name: values[i * size : (i + 1) * size] for name, values in inputs.items()}
            with self.accelerator.no_sync(model) if i < count - 1 else contextlib.nullcontext():
                total += super().training_step(model, part)
        return total


def decayed_names(model: nn.Module) -> list[str]:
    """The parameters that weight decay is for: matrices, and stacks of them, that are no bias, gain or norm."""
    ours = {
        f"{prefix}.{name}": name
        for prefix, module in model.named_modules()
        if isinstance(module, FeedForwardLayer)
        for name in module.parameter_names
    }
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
        and not any(word in name.lower() for word in ("bias", "norm"))
        and not is_bias(ours.get(name, ""))
    ]
