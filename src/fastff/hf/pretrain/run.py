"""Pretraining: from settings to a folder with a model, that can be killed at any moment and resumed."""

import copy
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments

import fastff
from fastff.hf.pretrain.arguments import training_arguments
from fastff.hf.pretrain.callbacks import BalanceCallback, BudgetCallback, GrowthCallback, LogCallback
from fastff.hf.pretrain.checkpoints import drop_partial, newest_checkpoint, read_progress
from fastff.hf.pretrain.config import PretrainConfig
from fastff.hf.pretrain.data import (
    Draw,
    EvaluationRows,
    TrainingBatches,
    collate,
    make_collator,
    make_tokenizer,
    mixed_seed,
    packed,
)
from fastff.hf.pretrain.log import RunLog
from fastff.hf.pretrain.models import build_model
from fastff.hf.pretrain.schedule import Progress
from fastff.hf.pretrain.trainer import PretrainTrainer
from fastff.hf.save import save_whole
from fastff.hf.text import load_tokenizer
from fastff.nn import FeedForwardLayer, initialise_from_data
from fastff.nn.tree_layer import TreeLayer
from fastff.runs.files import read_object, write_json
from fastff.runs.folder import claim_folder, is_finished
from fastff.runs.interrupts import Interrupted, interrupts

INITIALISE_TOKENS = 4000  # what `initialise_from_data` looks at


def pretrain(config: PretrainConfig, out: str | Path, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train a language model and save it.

    Args:
        config: everything that the result depends on.
        out: folder of the run: config.json, tokenizer, metrics.jsonl, TensorBoard events, checkpoints while it runs; at
            the end model (weights, configuration and tokenizer, for `from_pretrained`) and result.json.
        resume: go on where a run in `out` stopped; with a budget of tokens to the same weights, bit for bit on one CPU
            with as many threads. A finished run is returned as it is, an empty folder starts.
        quiet: print nothing.

    Returns:
        The content of result.json.

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
            run = _Run(config, folder, args)
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


class _Run:
    """One run's tokenizer, data, model, trainer and progress."""

    def __init__(self, config: PretrainConfig, folder: Path, args: TrainingArguments) -> None:
        self.config, self.folder = config, folder
        processes = args.world_size
        self.progress = Progress(config, unit=config.batch_size * processes)
        self.checkpoint = newest_checkpoint(folder / "checkpoints")
        if self.checkpoint:
            read_progress(self.checkpoint, self.progress)
        with args.main_process_first(local=False):
            self.tokenizer = self._tokenizer()
            rows = packed(config, self.tokenizer, "train")
            validation = packed(config, self.tokenizer, "validation", config.validation)
        if processes > 1:  # whole batches, so that none is evaluated twice
            if len(validation) < self.progress.unit:
                raise ValueError(f"validation data must fill {self.progress.unit} sequences, got {len(validation)}")
            validation = validation.select(range(len(validation) // self.progress.unit * self.progress.unit))
        collator = make_collator(config, self.tokenizer)
        transformers.set_seed(config.seed)
        model = build_model(config, self.tokenizer)
        self.figures = _figures(model)
        self.model_config = copy.deepcopy(model.config)  # Trainer turns the cache of generation off in the model's
        batches = TrainingBatches(rows, collator, self.progress, args.process_index, processes)
        if config.initialise and config.new_layers and not self.checkpoint:
            self._initialise(model, args.device, batches)
        self.trainer = PretrainTrainer(
            self.progress,
            model=model,
            args=args,
            train_dataset=batches,
            eval_dataset=EvaluationRows(validation, collator, config.seed),
            data_collator=transformers.default_data_collator,
        )
        self.trainer.remove_callback(PrinterCallback)
        if config.grow and config.new_layers:
            self.trainer.add_callback(GrowthCallback(self.progress))
        self.trainer.add_callback(BalanceCallback())
        transformers.set_seed(config.seed + 1 + args.process_index)  # noise differs between processes

    @property
    def title(self) -> str:
        c, f = self.config, self.figures
        layer = f", {c.feedforward}" if c.feedforward else ""
        return f"{c.model}{layer}: {f['parameters']:,} parameters, {c.objective}, on {c.data}"

    def _tokenizer(self) -> Any:
        """That of the folder, so that a resumed run has the same; made first if need be."""
        place = self.folder / "tokenizer"
        if not place.exists():
            partial = self.folder / ".tokenizer.tmp"
            make_tokenizer(self.config).save_pretrained(partial)
            os.rename(partial, place)
        return load_tokenizer(str(place))

    def _initialise(self, model: nn.Module, device: torch.device, batches: TrainingBatches) -> None:
        """Set the decisions of trees from the first training data, the same in every process."""
        if any(isinstance(module, TreeLayer) for module in model.modules()):
            model.to(device)
            indices = batches.indices(0, math.ceil(INITIALISE_TOKENS / self.config.length))
            batch = collate(batches.rows, indices, batches.collator, mixed_seed(self.config.seed, Draw.INITIALISATION))
            initialise_from_data(model, [{name: values.to(device) for name, values in batch.items()}])

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
        accelerator, p = self.trainer.accelerator, self.progress
        model = accelerator.unwrap_model(self.trainer.model)
        model.config = self.model_config
        state = accelerator.get_state_dict(self.trainer.model)
        evaluation = self.log.evaluation
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
            results = {
                f"validation loss, {self.config.objective} language model": f"{result['validation_loss']:.4f}",
                "pretraining tokens": f"{p.tokens:,}",
            }
            title = self.folder.resolve().name
            save_whole(model, self.tokenizer, self.folder / "model", title=title, results=results, state_dict=state)
            write_json(self.folder / "result.json", result)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return result


def _figures(model: PreTrainedModel) -> dict[str, int]:
    """Parameters, and the neurons of our layers: all, and those that a token runs."""
    layers = [module for module in model.modules() if isinstance(module, FeedForwardLayer)]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_width": sum(layer.training_width for layer in layers),
        "inference_width": sum(layer.inference_width for layer in layers),
    }
