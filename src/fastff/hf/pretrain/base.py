"""What every run with a budget does: claim its folder, make its data and model, train, be stopped and go on."""

import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PrinterCallback, TrainingArguments

import fastff
from fastff.hf.pretrain.arguments import training_arguments
from fastff.hf.pretrain.budget import BudgetSettings
from fastff.hf.pretrain.callbacks import BalanceCallback, BudgetCallback, GrowthCallback, LogCallback
from fastff.hf.pretrain.checkpoints import drop_partial, newest_checkpoint, read_progress
from fastff.hf.pretrain.data import Collator, EvaluationRows, TrainingBatches, packed
from fastff.hf.pretrain.log import RunLog
from fastff.hf.pretrain.schedule import Progress
from fastff.hf.pretrain.trainer import PretrainTrainer
from fastff.hf.text import load_tokenizer
from fastff.nn import FeedForwardLayer
from fastff.runs.files import read_object, write_json
from fastff.runs.folder import claim_folder, is_finished
from fastff.runs.interrupts import Interrupted, interrupts


class BudgetRun(ABC):
    """One run's tokenizer, data, model, trainer and progress.

    Args:
        config: everything that the result depends on.
        folder: of the run.
        args: of Trainer.
    """

    def __init__(self, config: Any, folder: Path, args: TrainingArguments) -> None:
        self.config, self.folder = config, folder
        self.progress = Progress(config, unit=config.batch_size * args.world_size)
        self.checkpoint = newest_checkpoint(folder / "checkpoints")
        if self.checkpoint:
            read_progress(self.checkpoint, self.progress)
        with args.main_process_first(local=False):
            self.tokenizer = self._tokenizer()
            rows = packed(config, self.tokenizer, "train", self.special)
            validation = packed(config, self.tokenizer, "validation", self.special, config.validation)
        if args.world_size > 1:  # whole batches, so that none is evaluated twice
            if len(validation) < self.progress.unit:
                raise ValueError(f"validation data must fill {self.progress.unit} sequences, got {len(validation)}")
            validation = validation.select(range(len(validation) // self.progress.unit * self.progress.unit))
        collator = self.make_collator()
        self.validation = EvaluationRows(validation, collator, config.seed)
        transformers.set_seed(config.seed)
        batches = TrainingBatches(rows, collator, self.progress, args.process_index, args.world_size)
        model = self.make_model(args, batches)
        self.figures = figures(model)
        self.trainer = self.make_trainer(
            model=model,
            args=args,
            train_dataset=batches,
            eval_dataset=self.validation,
            data_collator=transformers.default_data_collator,
        )
        self.trainer.remove_callback(PrinterCallback)
        if config.growth and self.grows:
            self.trainer.add_callback(GrowthCallback(self.progress))
        self.trainer.add_callback(BalanceCallback())
        transformers.set_seed(config.seed + 1 + args.process_index)  # noise differs between processes

    special: bool  # whether sequences begin with CLS and end with SEP
    grows: bool  # whether trees may grow

    @property
    @abstractmethod
    def title(self) -> str:
        """One line about what is trained."""

    @abstractmethod
    def make_tokenizer(self) -> Any:
        """The tokenizer, for a run that has none yet."""

    @abstractmethod
    def make_collator(self) -> Collator:
        """Makes a batch of rows."""

    @abstractmethod
    def make_model(self, args: TrainingArguments, batches: TrainingBatches) -> nn.Module:
        """What Trainer trains; before a first step ready for it."""

    def make_trainer(self, **given: Any) -> PretrainTrainer:
        """Trainer with these arguments."""
        return PretrainTrainer(self.progress, **given)

    @abstractmethod
    def save(self, model: nn.Module, state: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        """Write the trained model to the folder, in the main process; returns what result.json should say besides."""

    def _tokenizer(self) -> Any:
        """That of the folder, so that a resumed run has the same; made first if need be."""
        place = self.folder / "tokenizer"
        if not place.exists():
            partial = self.folder / ".tokenizer.tmp"
            self.make_tokenizer().save_pretrained(partial)
            os.rename(partial, place)
        return load_tokenizer(str(place))

    def train(self, log: RunLog | None) -> None:
        """Go on to the end of the budget; raises Interrupted after a checkpoint."""
        accelerator = self.trainer.accelerator
        with interrupts() as interrupted:
            budget = BudgetCallback(self.progress, accelerator, interrupted)
            self.log = LogCallback(self.progress, log)
            self.trainer.add_callback(budget)
            self.trainer.add_callback(self.log)
            self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if budget.stops:
            raise Interrupted

    def finish(self) -> dict[str, Any]:
        """Save the model, write result.json, remove the checkpoints."""
        accelerator, p, evaluation = self.trainer.accelerator, self.progress, self.log.evaluation
        state = accelerator.get_state_dict(self.trainer.model)
        result = {
            "versions": {m.__name__: m.__version__ for m in (fastff, torch, transformers)},
            **self.figures,
            "steps": p.step,
            "tokens": p.tokens,
            "seconds": p.seconds,
            "validation_loss": evaluation["validation_loss"],
            "layers": evaluation["layers"],
        }
        if accelerator.is_main_process:
            result |= self.save(accelerator.unwrap_model(self.trainer.model), state, result)
            write_json(self.folder / "result.json", result)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return result


def run_in_folder(
    kind: type[BudgetRun], config: BudgetSettings, out: str | Path, resume: bool, quiet: bool
) -> dict[str, Any]:
    """Run or resume what `config` says in the folder `out`; returns the content of its result.json.

    Raises:
        ValueError: data, model or settings cannot be used, the loss is no number, or `out` holds another run.
        Interrupted: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    folder = Path(out)
    if is_finished(config, folder, resume):
        return read_object(folder / "result.json")
    fresh = not (folder / "config.json").exists()
    args = training_arguments(config, folder)  # processes wait for each other here, after having looked at the folder
    main, log, lock = args.process_index == 0, None, None
    try:
        if main:
            lock = claim_folder(config, folder)
            drop_partial(folder / "checkpoints")
        transformers.logging.disable_progress_bar()  # of every file that is saved
        try:
            run = kind(config, folder, args)
        except Exception:
            if main and fresh:  # settings that cannot run leave nothing behind
                shutil.rmtree(folder / "tokenizer", ignore_errors=True)
                (folder / "config.json").unlink()
            raise
        if main:
            log = RunLog(folder, run.progress.step, run.title, quiet)
        run.train(log)
        return run.finish()
    finally:
        for opened in (log, lock):
            if opened:
                opened.close()


def figures(model: nn.Module) -> dict[str, int]:
    """Parameters, and the neurons of our layers: all, and those that a token runs."""
    layers = [module for module in model.modules() if isinstance(module, FeedForwardLayer)]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_width": sum(layer.training_width for layer in layers),
        "inference_width": sum(layer.inference_width for layer in layers),
    }
