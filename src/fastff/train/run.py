"""A run's model, optimiser and progress, and what they do: steps, evaluations, checkpoints, the result."""

import math
import shutil
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastff
from fastff.nn.usage import collapse_warning
from fastff.runs.files import write_json, write_tensors
from fastff.runs.interrupts import Interrupted
from fastff.train.augment import augment
from fastff.train.checkpoint import load_checkpoint, save_checkpoint
from fastff.train.config import TrainConfig
from fastff.train.data import Data
from fastff.train.evaluation import can_soften, evaluate, mean_inputs
from fastff.train.models import build_model
from fastff.train.optimization import make_optimizer, make_schedule
from fastff.train.saved import load_weights, save_model


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint. An epoch is done when it has been evaluated."""

    epoch: int = 0
    step: int = 0  # steps done within the epoch
    loss_sum: float = 0.0  # over those steps
    seconds: float = 0.0  # of this epoch's steps so far
    best_accuracy: float = -1.0
    best_epoch: int = 0
    warned: bool = False
    diverged: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One run's model, optimiser, schedule and progress."""

    def __init__(self, config: TrainConfig, folder: Path, data: Data, checkpoint_seconds: float, resumes: bool) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import set_seed

        if (config.shift or config.flip) and len(data.shape) != 3:
            raise ValueError(
                f"shift and flip need images, and the samples of {config.data!r} are of shape {data.shape}"
            )
        # So that one process can train in several precisions, one after the other.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.config, self.folder, self.data, self.checkpoint_seconds = config, folder, data, checkpoint_seconds
        self.accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.accelerator.is_available())
        self.main = self.accelerator.is_main_process
        processes = self.accelerator.num_processes
        if config.batch_size % processes:
            raise ValueError(f"batch_size must be divisible by the {processes} processes, got {config.batch_size}")
        set_seed(config.seed)
        model = build_model(config.model, data.shape, data.classes, config.layer, config.input_dropout)
        if config.initialise:
            first = _order(len(data.train), config.seed, epoch=0)[:4000]
            samples = data.normalise(data.train.inputs[first].to(self.accelerator.device))
            fastff.initialise_from_data(model, [samples], seed=config.seed)
        self.plain = model
        self.trees = [layer for layer in model.modules() if isinstance(layer, fastff.TreeFeedForward)]
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(config, model))
        self.steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.schedule = make_schedule(config, self.optimizer.optimizer, self.total_steps)
        self.accelerator.register_for_checkpointing(self.schedule)
        set_seed(config.seed + 1 + self.accelerator.process_index)  # noise differs between processes
        self.progress = load_checkpoint(self.accelerator, folder, Progress) if resumes else Progress()
        if config.grow:
            fastff.start_growth(model, self._grown)
        self._last_checkpoint = time.monotonic()

    @property
    def done(self) -> bool:
        """All epochs are over, or none has been the best for too long, or the loss is no number."""
        p, patience = self.progress, self.config.patience
        stale = patience is not None and not self._growing and p.epoch - p.best_epoch >= patience
        return p.diverged or p.epoch >= self.config.epochs or stale

    @property
    def _grown(self) -> float:
        """The share of the growth of trees that is over."""
        p = self.progress
        return (p.epoch * self.steps_per_epoch + p.step) / (self.config.grow * self.total_steps)

    @property
    def _growing(self) -> bool:
        return any(tree.levels < tree.depth for tree in self.trees)

    def train_epoch(self, interrupted: threading.Event) -> None:
        """The rest of the epoch, step by step; checkpoints when it is time."""
        p, config = self.progress, self.config
        order = _order(len(self.data.train), config.seed, p.epoch)
        self.model.train()
        while p.step < self.steps_per_epoch:
            began = time.perf_counter()
            p.loss_sum += self._step(order[p.step * config.batch_size : (p.step + 1) * config.batch_size])
            p.step += 1
            if self._growing:
                fastff.grow(self.plain, self._grown, self.optimizer)
                p.best_epoch = p.epoch  # patience begins with the whole tree
            p.seconds += time.perf_counter() - began
            if not math.isfinite(p.loss_sum):
                p.diverged = True
                break
            self.checkpoint_if_due(interrupted)

    def _step(self, batch: Tensor) -> float:
        """One step of the optimiser; returns the loss, which waits for the device."""
        config, accelerator, processes = self.config, self.accelerator, self.accelerator.num_processes
        mine = batch[accelerator.process_index :: processes]
        weight = processes * len(mine) / len(batch)  # DDP takes the mean over processes, which may differ by a sample
        mine = mine if len(mine) else batch[:1]  # with weight 0: every process must run backward
        parts = [part for part in mine.tensor_split(config.accumulation) if len(part)]
        total = torch.zeros((), device=accelerator.device)
        for i, part in enumerate(parts):
            share = weight * len(part) / len(mine)
            x = self.data.train.inputs[part].to(accelerator.device)
            if config.shift or config.flip:
                x = augment(x, shift=config.shift, flip=config.flip)
            labels = self.data.train.labels[part].to(accelerator.device)
            with nullcontext() if i == len(parts) - 1 else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    logits = self.model(self.data.normalise(x))
                loss = F.cross_entropy(logits.float(), labels) + self._auxiliary_loss()
                accelerator.backward(share * loss)
            total += share * loss.detach()
        if config.clip is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        fastff.balance_experts(self.plain)
        self.optimizer.zero_grad()
        if config.schedule != "plateau":
            self.schedule.step()
        return (accelerator.reduce(total, "mean") if processes > 1 else total).item()

    def _auxiliary_loss(self) -> Tensor:
        c, p = self.config, self.progress
        done = (p.epoch * self.steps_per_epoch + p.step) / self.total_steps
        share = {"constant": 1.0, "warmup": done, "anneal": 1 - done}[c.hardening_schedule]
        return fastff.auxiliary_loss(
            self.plain, hardening=share * c.hardening, balance=c.balance, importance=c.importance, load=c.load
        )

    def evaluate_epoch(self) -> tuple[dict[str, Any], str | None]:
        """Evaluate on training and validation data, keep the weights if they are the best, end the epoch.

        Returns:
            The epoch's figures, and what to warn of, if it is the first time.
        """
        p, accelerator = self.progress, self.accelerator
        if p.diverged:
            fastff.grow(self.plain, 1.0)
        memorised = evaluate(self.plain, self.data, self.data.train, accelerator=accelerator)
        validated = evaluate(self.plain, self.data, self.data.validation, accelerator=accelerator)
        row: dict[str, Any] = {
            "epoch": p.epoch + 1,
            "loss": _finite(p.loss_sum / max(1, p.step)),
            "train_accuracy": memorised.accuracy,
            "validation_accuracy": validated.accuracy,
            "validation_loss": _finite(validated.loss),
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": p.seconds,
            "layers": {name: use.to_dict() for name, use in validated.layers.items()},
        }
        if can_soften(self.plain):
            for name in ("train", "validation"):
                split = getattr(self.data, name)
                soft = evaluate(self.plain, self.data, split, soft=True, accelerator=accelerator)
                row[f"{name}_soft_accuracy"] = soft.accuracy
        if self.config.schedule == "plateau":
            self.schedule.step(validated.accuracy)
        if validated.accuracy > p.best_accuracy and not self._growing:
            p.best_accuracy, p.best_epoch = validated.accuracy, p.epoch + 1
            if self.main:
                save_model(self.folder, self.plain, self.data)
        p.history.append(row)
        p.epoch, p.step, p.loss_sum, p.seconds = p.epoch + 1, 0, 0.0, 0.0
        if p.diverged:
            return row, f"training has diverged: the loss is no number. Lower the learning rate ({self.config.lr})."
        warning = None if p.warned else collapse_warning(row["layers"])
        p.warned = p.warned or warning is not None
        return row, warning

    def checkpoint_if_due(self, interrupted: threading.Event) -> None:
        """Save the full state if it is time, or the run is interrupted, which then ends it."""
        due = time.monotonic() - self._last_checkpoint >= self.checkpoint_seconds
        stop = interrupted.is_set()
        if self.accelerator.num_processes > 1:  # their clocks and signals differ: all do what any of them is to do
            flags = torch.tensor([due, stop], dtype=torch.float32, device=self.accelerator.device)
            due, stop = (self.accelerator.reduce(flags, "sum") > 0).tolist()
        if due or stop:
            p = self.progress
            save_checkpoint(self.accelerator, self.folder, f"{p.epoch:06d}-{p.step:09d}", asdict(p))
            self._last_checkpoint = time.monotonic()
        if stop:
            raise Interrupted

    def finish(self) -> dict[str, Any]:
        """Evaluate the best epoch's weights on the test data, once, and write result.json."""
        p, accelerator, data = self.progress, self.accelerator, self.data
        accelerator.wait_for_everyone()
        load_weights(self.folder, self.plain, data)
        test = evaluate(self.plain, data, data.test, accelerator=accelerator)
        layers = [m for m in self.plain.modules() if isinstance(m, fastff.nn.FeedForwardLayer)]
        tokens = self.plain.tokens
        memorised = max(p.history, key=lambda row: row["train_accuracy"])
        result = {
            "config": self.config.to_dict(),
            "versions": {"fastff": fastff.__version__, "torch": torch.__version__},
            "samples": {name: len(getattr(data, name)) for name in ("train", "validation", "test")},
            "parameters": sum(t.numel() for t in self.plain.parameters()),
            "training_width": layers[0].training_width,
            "inference_width": layers[0].inference_width,
            "training_multiply_adds": tokens * sum(layer.multiply_adds(training=True) for layer in layers),
            "inference_multiply_adds": tokens * sum(layer.multiply_adds(training=False) for layer in layers),
            "epochs": p.epoch,
            "best_epoch": p.best_epoch,
            "validation_accuracy": p.best_accuracy,
            "memorisation_accuracy": memorised["train_accuracy"],
            "memorisation_epoch": memorised["epoch"],
            "test_accuracy": test.accuracy,
            "test_loss": _finite(test.loss),
            "diverged": p.diverged,
            "training_seconds": sum(row["seconds"] for row in p.history),
            "inference_microseconds_per_sample": 1e6 * test.seconds / len(data.test),
            "layers": {name: use.to_dict() for name, use in test.layers.items()},
            "history": p.history,
        }
        if can_soften(self.plain):
            test_soft = evaluate(self.plain, data, data.test, soft=True, accelerator=accelerator)
            result["test_soft_accuracy"] = test_soft.accuracy
            result["memorisation_soft_accuracy"] = max(row["train_soft_accuracy"] for row in p.history)
        if self.main:
            self._keep_mean_inputs()
            write_json(self.folder / "result.json", result)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.end_training()  # a process that ends while another still talks to it may abort
        return result

    def _keep_mean_inputs(self) -> None:
        """For the report: which images end in which leaf, where the layer is alone on the images and routes."""
        layer = getattr(self.plain, "layer", None)
        if isinstance(layer, fastff.nn.RoutedLayer) and len(self.data.shape) == 3:
            means = mean_inputs(self.plain, layer, self.data, self.data.validation)
            tensors = {"mean_inputs": means.round().to(torch.uint8)}
            write_tensors(self.folder / "mean_inputs.safetensors", tensors)


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of the training data in an epoch: its own generator, so that a resumed run has the same."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
