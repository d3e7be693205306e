"""Pretraining: from settings to a folder with a model, that can be killed at any moment and resumed."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from fastff.hf.pretrain.base import BudgetRun, run_in_folder
from fastff.hf.pretrain.config import PretrainConfig
from fastff.hf.pretrain.data import Collator, TrainingBatches, make_collator, make_tokenizer
from fastff.hf.pretrain.models import build_model
from fastff.hf.save import save_whole
from fastff.nn import initialise_from_data
from fastff.nn.tree_layer import TreeLayer

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
    return run_in_folder(PretrainRun, config, out, resume, quiet)


class PretrainRun(BudgetRun):
    """A language model learns from text."""

    config: PretrainConfig
    model_config: PreTrainedConfig

    @property
    def special(self) -> bool:  # type: ignore[override]
        return self.config.objective == "masked"

    @property
    def grows(self) -> bool:  # type: ignore[override]
        return self.config.new_layers

    @property
    def title(self) -> str:
        c, f = self.config, self.figures
        layer = f", {c.feedforward}" if c.feedforward else ""
        return f"{c.model}{layer}: {f['parameters']:,} parameters, {c.objective}, on {c.data}"

    def make_tokenizer(self) -> Any:
        return make_tokenizer(self.config)

    def make_collator(self) -> Collator:
        return make_collator(self.config.objective, self.tokenizer, self.config.mask_share)

    def make_model(self, args: TrainingArguments, batches: TrainingBatches) -> nn.Module:
        model = build_model(self.config, self.tokenizer)
        self.model_config = copy.deepcopy(model.config)  # Trainer turns the cache of generation off in the model's
        if self.config.initialise and self.config.new_layers and not self.checkpoint:
            self._initialise(model, args.device, batches)
        return model

    def _initialise(self, model: nn.Module, device: torch.device, batches: TrainingBatches) -> None:
        """Set the decisions of trees from the first training data, the same in every process."""
        if any(isinstance(module, TreeLayer) for module in model.modules()):
            model.to(device)
            batch = batches.first(INITIALISE_TOKENS)
            initialise_from_data(model, [{name: values.to(device) for name, values in batch.items()}])

    def save(self, model: nn.Module, state: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(model, PreTrainedModel)
        model.config = self.model_config
        results = {
            f"validation loss, {self.config.objective} language model": f"{result['validation_loss']:.4f}",
            "pretraining tokens": f"{self.progress.tokens:,}",
        }
        title = self.folder.resolve().name
        save_whole(model, self.tokenizer, self.folder / "model", title=title, results=results, state_dict=state)
        return {}
