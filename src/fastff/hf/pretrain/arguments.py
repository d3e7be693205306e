"""What Hugging Face's Trainer is told."""

import sys
from pathlib import Path

import torch
from transformers import TrainingArguments

from fastff.hf.pretrain.budget import BudgetSettings


def training_arguments(config: BudgetSettings, folder: Path) -> TrainingArguments:
    """The arguments of a run in `folder`; when to log, evaluate, save and end is for the callbacks to say."""
    args = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=sys.maxsize,
        ignore_data_skip=True,  # `TrainingBatches` knows where it was
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_epsilon=config.epsilon,
        max_grad_norm=config.clip,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        seed=config.seed,
        use_cpu=not torch.accelerator.is_available(),
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        logging_nan_inf_filter=False,  # LogCallback raises
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )
    if args.n_gpu > 1:
        args._n_gpu = 1  # several are for `accelerate launch`: DataParallel would hide the routing from the losses
    return args
