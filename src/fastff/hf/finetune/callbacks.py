"""What happens between the steps of a run: the clock, evaluations, checkpoints, the end by an interrupt."""

import json
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastff.hf.finetune.log import FinetuneLog
from fastff.hf.pretrain.checkpoints import PROGRESS
from fastff.runs.files import write_json


@dataclass
class Progress:
    """What a run has behind it; saved with every checkpoint.

    Attributes:
        seconds: of training, without evaluations and checkpoints.
        loss_sum: over the steps of the epoch that is running.
        epochs: the figures of each one that is over.
    """

    seconds: float = 0.0
    loss_sum: float = 0.0
    epochs: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def read(cls, checkpoint: Path) -> "Progress":
        try:
            return cls(**json.loads((checkpoint / PROGRESS).read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{checkpoint / PROGRESS} cannot be read: {error}") from None


class FinetuneCallback(TrainerCallback):
    """Measures, evaluates and saves after each epoch, and ends the run after a step if it is interrupted.

    Args:
        progress: of the run.
        log: is told.
        interrupted: ends the run.
    """

    def __init__(self, progress: Progress, log: FinetuneLog, interrupted: threading.Event) -> None:
        self.progress, self.log, self.interrupted = progress, log, interrupted
        self._began = 0.0

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        steps = steps_of_epoch(state)
        done = state.global_step % steps or steps
        self.log.step(state.global_step, state.max_steps, self.progress.loss_sum / done)
        if self.interrupted.is_set():
            control.should_training_stop = True
            if done < steps:  # else the end of the epoch saves
                self._clock()
                control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """An interrupted epoch ends here, too, but that is no end."""
        if state.global_step % steps_of_epoch(state) == 0:
            self._clock()
            control.should_evaluate = control.should_save = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metrics = kwargs["metrics"]
        row = {
            "loss": self.progress.loss_sum / steps_of_epoch(state),
            "validation_loss": metrics["eval_loss"],
            "validation_accuracy": metrics["eval_accuracy"],
        }
        self.progress.epochs.append(row)
        self.progress.loss_sum = 0.0
        self.log.epoch(len(self.progress.epochs), row)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert args.output_dir is not None
        write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / PROGRESS, asdict(self.progress))

    def _clock(self) -> None:
        self.progress.seconds += time.perf_counter() - self._began


def steps_of_epoch(state: TrainerState) -> int:
    return state.max_steps // state.num_train_epochs
