"""Trainer for one run, and what it is told."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from fastff.hf.auxiliary import AuxiliaryLossTrainer
from fastff.hf.finetune.callbacks import Progress
from fastff.hf.finetune.config import FinetuneConfig
from fastff.hf.pretrain.trainer import decayed_names


class FinetuneTrainer(AuxiliaryLossTrainer):
    """Trainer that sums the losses of its steps, and ends where one is no number."""

    def __init__(self, progress: Progress, balance: float, **kwargs: Any) -> None:
        super().__init__(balance, **kwargs)
        self.progress = progress

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decayed_names(model)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs)
        value = loss.item()
        if not math.isfinite(value):
            step, lr = self.state.global_step + 1, self.args.learning_rate
            raise ValueError(f"training has diverged at step {step}: the loss is no number; lower lr ({lr})")
        self.progress.loss_sum += value
        return loss


def training_arguments(config: FinetuneConfig, seed: int, folder: Path) -> TrainingArguments:
    """What Trainer is told; when to evaluate, save and end is for the callback to say."""
    device = torch.accelerator.is_available()
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,  # a share, as it is below 1
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_epsilon=config.epsilon,
        max_grad_norm=config.clip,
        train_sampling_strategy="group_by_length",  # less padding: with texts as short as SST-2's it doubles the speed
        seed=seed,
        data_seed=1000 * seed,  # an epoch's order comes of this plus its number: no two seeds share one
        use_cpu=not device,
        dataloader_pin_memory=device,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=2,  # the newest may be half-written
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
    )
    if args.n_gpu > 1:
        args._n_gpu = 1  # DataParallel would hide the routing from the losses
    return args


def predicted_classes(logits: Any, labels: Tensor) -> Tensor:
    """What to keep of a batch's logits, which some architectures return with more."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def accuracy(prediction: Any) -> dict[str, float]:
    """Of predicted classes, in per cent."""
    return {"accuracy": 100 * float(np.mean(prediction.predictions == prediction.label_ids))}
