"""The runs of all models on one task, one after the other, and the measurement of all models at once."""

import shutil
import threading
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DataCollatorWithPadding, PrinterCallback

import fastff
from fastff.hf.finetune.callbacks import FinetuneCallback, Progress
from fastff.hf.finetune.config import FinetuneConfig
from fastff.hf.finetune.data import encode, load_task
from fastff.hf.finetune.log import FinetuneLog
from fastff.hf.finetune.models import Candidate, describe
from fastff.hf.finetune.speed import batches_of, inference_seconds
from fastff.hf.finetune.summary import summarise_models
from fastff.hf.finetune.trainer import FinetuneTrainer, accuracy, predicted_classes, training_arguments
from fastff.hf.pretrain.checkpoints import drop_partial, newest_checkpoint
from fastff.hf.save import save_whole
from fastff.runs.files import read_object, write_json
from fastff.runs.interrupts import Interrupted


class Tuning:
    """Everything is loaded once at the start: the last model must not fail when the first has trained for hours."""

    def __init__(self, config: FinetuneConfig, folder: Path, candidates: list[Candidate]) -> None:
        self.config, self.folder, self.candidates = config, folder, candidates
        self.task = load_task(config)
        self.tokenizers = {c.label: c.load_tokenizer(config.length) for c in candidates}
        self.facts = {c.label: describe(c, c.load(self.task, config)) for c in candidates}
        self.train_rows = {c.label: self._encode(self.task.train, c) for c in candidates}
        self.validation_rows = {c.label: self._encode(self.task.validation, c) for c in candidates}

    def _encode(self, rows: Any, candidate: Candidate) -> Any:
        return encode(rows, self.task.text_columns, self.tokenizers[candidate.label], self.config.length)

    def train(
        self, candidate: Candidate, seed: int, log: FinetuneLog, interrupted: threading.Event, save_model: bool
    ) -> None:
        """Train to the end, or on from the newest checkpoint, and write the result; raises Interrupted in between."""
        path = result_path(self.folder, candidate, seed)
        checkpoints = self.folder / "checkpoints" / path.stem
        drop_partial(checkpoints)
        checkpoint = newest_checkpoint(checkpoints)
        progress = Progress.read(checkpoint) if checkpoint else Progress()
        tokenizer = self.tokenizers[candidate.label]
        transformers.set_seed(seed)
        model = candidate.load(self.task, self.config)
        trainer = FinetuneTrainer(
            progress,
            self.config.balance,
            model=model,
            args=training_arguments(self.config, seed, checkpoints),
            train_dataset=self.train_rows[candidate.label],
            eval_dataset=self.validation_rows[candidate.label],
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            compute_metrics=accuracy,
            preprocess_logits_for_metrics=predicted_classes,
            callbacks=[FinetuneCallback(progress, log, interrupted)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if len(progress.epochs) < self.config.epochs:
            raise Interrupted
        last = progress.epochs[-1]
        if save_model:
            results = {f"accuracy on {Path(self.config.data).name}": f"{last['validation_accuracy']:.2f} %"}
            place = self.folder / "models" / path.stem
            save_whole(model, tokenizer, place, title=place.name, results=results)
        result = {
            "model": candidate.place,
            "seed": seed,
            "accuracy": last["validation_accuracy"],
            "loss": last["validation_loss"],
            "training_seconds": progress.seconds,
            "epochs": progress.epochs,
        }
        write_json(path, result)
        shutil.rmtree(checkpoints, ignore_errors=True)

    def summarise(self, interrupted: threading.Event) -> dict[str, Any]:
        """Put all together, with the time of inference, measured with the weights from before fine-tuning."""
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        subjects = {}
        for c in self.candidates:
            model: Any = c.load(self.task, self.config).eval()
            subjects[c.label] = (
                model.to(device),
                batches_of(self.validation_rows[c.label], self.tokenizers[c.label], device),
            )
        seconds = inference_seconds(subjects, interrupted)
        results = {
            c.label: [read_object(result_path(self.folder, c, seed)) for seed in range(self.config.seeds)]
            for c in self.candidates
        }
        return {
            "settings": self.config.to_dict(),
            "versions": {m.__name__: m.__version__ for m in (fastff, torch, transformers)},
            "device": str(device),
            "threads": torch.get_num_threads(),
            "classes": self.task.classes,
            "samples": {"train": len(self.task.train), "validation": len(self.task.validation)},
            "models": summarise_models(self.facts, results, seconds),
        }


def result_path(folder: Path, candidate: Candidate, seed: int) -> Path:
    return folder / "runs" / f"{candidate.label}-seed{seed}.json"
