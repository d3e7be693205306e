"""What happens between the steps of a run: the budget that ends it, checkpoints, growth, evaluations, the log."""

import math
import threading
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastff.hf.pretrain.checkpoints import PROGRESS
from fastff.hf.pretrain.log import RunLog
from fastff.hf.pretrain.schedule import Progress
from fastff.hf.routing_callback import RoutingCallback
from fastff.nn import balance_experts, grow, start_growth
from fastff.nn.usage import collapse_warning
from fastff.runs.files import write_json


class BudgetCallback(TrainerCallback):
    """Counts the steps, says when to log, evaluate and save, and ends the run with the budget or an interrupt.

    Args:
        progress: of the run.
        accelerator: joins the processes.
        interrupted: ends the run after the step, with a checkpoint.
    """

    def __init__(self, progress: Progress, accelerator: Accelerator, interrupted: threading.Event) -> None:
        self.progress, self.accelerator, self.interrupted = progress, accelerator, interrupted
        self.stops = False  # before the budget is used up
        self._before = progress.share

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Here, for the schedule of the learning rate moves on right after."""
        self._before = self.progress.share
        seconds, self.stops = self.progress.step_seconds(), self.interrupted.is_set()
        if self.accelerator.num_processes > 1:  # their clocks and signals differ
            both = torch.tensor([seconds, float(self.stops)], device=self.accelerator.device)
            both = self.accelerator.gather(both).view(-1, 2).amax(0)
            seconds, self.stops = both[0].item(), bool(both[1] > 0)
        self.progress.end_step(seconds)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        config, over = self.progress.config, self.progress.share >= 1
        self.stops = self.stops and not over
        control.should_log = self._passed(config.logs) or self.stops
        control.should_evaluate = self._passed(config.evaluations)
        control.should_save = self.stops or (self._passed(config.checkpoints) and not over)
        control.should_training_stop = over or self.stops

    def _passed(self, times: int) -> bool:
        """Whether the step was the one to reach another of `times` equal parts of the budget."""
        return int(self.progress.share * times) > int(self._before * times)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            assert args.output_dir is not None
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / PROGRESS, self.progress.to_dict())
        self.accelerator.wait_for_everyone()


class GrowthCallback(TrainerCallback):
    """Lets trees grow out of dense layers (`fastff.grow`) while the first `config.growth` of the budget is used up.

    Args:
        progress: of the run.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    @property
    def share(self) -> float:
        """Of the growth that is over."""
        return self.progress.share / self.progress.config.growth

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Here, for a checkpoint, which holds whole trees, has been loaded."""
        start_growth(given["model"], self.share)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Before a checkpoint, so that `share` alone says how far it has grown."""
        grow(given["model"], self.share, given["optimizer"])


class BalanceCallback(TrainerCallback):
    """Balances experts without a loss, see `fastff.balance_experts`."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        balance_experts(given["model"])


class LogCallback(RoutingCallback):
    """Records the loss, and evaluations with the routing of all their batches.

    Args:
        progress: of the run.
        log: None in all processes but the main one.

    Attributes:
        evaluation: the newest row of the log.
    """

    def __init__(self, progress: Progress, log: RunLog | None) -> None:
        super().__init__()
        self.progress, self.log = progress, log
        self.evaluation: dict[str, Any] = {}
        self._then = (progress.tokens, progress.seconds)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs = given["logs"]
        if "loss" not in logs:  # an evaluation's, or the end's
            return
        p = self.progress
        if not math.isfinite(logs["loss"]):
            raise ValueError(f"training has diverged at step {p.step}: the loss is no number; lower lr ({p.config.lr})")
        row = self._row() | {"loss": logs["loss"], "lr": logs["learning_rate"], "batch": p.batch}
        norm = logs["grad_norm"]  # of scaled gradients that overflow (fp16) no number, and no JSON
        row["grad_norm"] = norm if math.isfinite(norm) else None
        tokens, seconds = self._then
        self._then = (p.tokens, p.seconds)
        if self.log:
            self.log.step(row, p.share, (p.tokens - tokens) / (p.seconds - seconds))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.take(args.device)
        self.evaluation = self._row() | {"validation_loss": given["metrics"]["eval_loss"], "layers": self.routing}
        warning = None if self.progress.warned else collapse_warning(self.routing)
        self.progress.warned = self.progress.warned or warning is not None
        if self.log:
            self.log.evaluation(self.evaluation, warning)

    def _row(self) -> dict[str, Any]:
        p = self.progress
        return {"step": p.step, "tokens": p.tokens, "seconds": round(p.seconds, 3)}
