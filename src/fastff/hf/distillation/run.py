"""Distillation: from a pretrained model to a folder with the same model on new feedforward layers."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastff.hf.distillation.config import DistilConfig
from fastff.hf.distillation.distiller import Distiller
from fastff.hf.distillation.initial import start_from_neurons
from fastff.hf.distillation.leaves import has_own_leaves
from fastff.hf.distillation.measure import measure
from fastff.hf.distillation.models import build_distiller, objective_of, original_config
from fastff.hf.pretrain.base import BudgetRun, run_in_folder
from fastff.hf.pretrain.data import Collator, TrainingBatches, make_collator
from fastff.hf.pretrain.schedule import Progress
from fastff.hf.pretrain.trainer import PretrainTrainer
from fastff.hf.save import save_whole
from fastff.hf.text import load_tokenizer
from fastff.nn import FeedForwardLayer, TreeFeedForward

INITIAL_TOKENS, PER_NUMBER = 16_000, 8  # what the start is fitted to: so many, or so many for each number of a leaf
INITIAL_BYTES = 2e9  # of inputs and outputs of all layers, at most


def distil(config: DistilConfig, out: str | Path, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Put new feedforward layers into a pretrained model and teach them what the original does.

    First every new layer learns the function that it replaces, on the original's own inputs, all of them side by side
    while text streams through the original; nothing is stored. Then the whole model learns the original's outputs and
    hidden states. Trees grow while the former goes on.

    Args:
        config: everything that the result depends on.
        out: folder of the run: config.json, metrics.jsonl, TensorBoard events, checkpoints while it runs; at the end
            model (for `from_pretrained` after `import fastff.hf`, with tokenizer and a card that says what is kept) and
            result.json.
        resume: go on where a run in `out` stopped. A finished run is returned as it is, an empty folder starts.
        quiet: print nothing.

    Returns:
        The content of result.json: beside sizes and times "missed", of each layer the share of the output's variance
        that it misses on validation data, and "kept", the original's and the new model's figures.

    Raises:
        ValueError: data, model or settings cannot be used, the model is quantised or has no feedforward layers, the
            loss is no number, or `out` holds another run.
        Interrupted: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    return run_in_folder(DistilRun, config, out, resume, quiet)


class DistilRun(BudgetRun):
    """A student learns from its teacher."""

    config: DistilConfig
    model_config: PreTrainedConfig
    layer: str  # in place of the feedforward functions, with its activation

    def __init__(self, config: DistilConfig, folder: Path, args: TrainingArguments) -> None:
        self.objective = objective_of(config, original_config(config))
        args.ddp_find_unused_parameters = True  # in the first stage the student's other weights are not used
        super().__init__(config, folder, args)
        self.trainer.add_callback(StageCallback(self.progress))

    @property
    def special(self) -> bool:  # type: ignore[override]
        return self.objective != "causal"

    @property
    def title(self) -> str:
        c, f = self.config, self.figures
        return f"{c.model}, {self.objective}, with {self.layer}: {f['parameters']:,} parameters, on {c.data}"

    def make_tokenizer(self) -> Any:
        return load_tokenizer(self.config.model)

    def make_collator(self) -> Collator:
        return make_collator(self.objective, self.tokenizer, self.config.mask_share)

    def make_trainer(self, **given: Any) -> PretrainTrainer:
        return DistilTrainer(self.progress, **given)

    def make_model(self, args: TrainingArguments, batches: TrainingBatches) -> nn.Module:
        model = build_distiller(self.config, self.objective)
        self.model_config = copy.deepcopy(model.student.config)
        self.layer = self.model_config.quantization_config.layer
        layers = [layer for layer in model.student.modules() if isinstance(layer, FeedForwardLayer)]
        own_leaves = self.config.neurons and has_own_leaves(layers[0])
        self.grows = not own_leaves  # they start whole: decisions from the data, which stay, and leaves of their own
        if own_leaves:
            for layer in layers:
                assert isinstance(layer, TreeFeedForward)
                layer.merge_base()
                layer.node_weight.requires_grad_(False)
                layer.node_bias.requires_grad_(False)
        if self.config.neurons and not self.checkpoint:
            model.to(args.device)
            batch = batches.first(_initial_tokens(layers, own_leaves))
            parts = batch["input_ids"].to(args.device).split(self.config.batch_size)
            start_from_neurons(model, [{"input_ids": part} for part in parts])
        if not self.config.others:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name in model.new_parameters)
        return model

    def save(self, model: nn.Module, state: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(model, Distiller)
        found = measure(model.eval(), self.validation, self.config.batch_size)
        student = model.student
        student.config = self.model_config
        lines = {
            "original": f"`{Path(self.config.model).name}`",
            "data": f"`{Path(self.config.data).name}`, {self.progress.tokens:,} tokens",
            "variance of the layers' outputs that is missed": f"{100 * found['missed_mean']:.1f} %",
            **{f"{name}, original and this": f"{a:.4f}, {b:.4f}" for name, (a, b) in found["kept"].items()},
        }
        title = self.folder.resolve().name
        weights = {name.removeprefix("student."): tensor for name, tensor in state.items()}
        save_whole(student, self.tokenizer, self.folder / "model", title=title, results=lines, state_dict=weights)
        return found


def _initial_tokens(layers: list[FeedForwardLayer], own_leaves: bool) -> int:
    """How many the start is fitted to."""
    wanted, first = INITIAL_TOKENS, layers[0]
    if own_leaves and isinstance(first, TreeFeedForward):
        wanted = max(wanted, PER_NUMBER * 2**first.depth * first.leaf_width * (1 + first.two_sided))
    return min(wanted, int(INITIAL_BYTES / sum(4 * (layer.in_features + layer.out_features) for layer in layers)))


class StageCallback(TrainerCallback):
    """Says when the whole model begins to learn.

    Args:
        progress: of the run.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        config = self.progress.config
        assert isinstance(config, DistilConfig)
        distiller = given["model"]
        distiller.whole = self.progress.share >= config.layerwise


class DistilTrainer(PretrainTrainer):
    """Weights that were pretrained move at a rate of their own."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        distiller: Any = self.accelerator.unwrap_model(self.model)
        config: Any = self.progress.config
        new = {id(p) for name, p in distiller.named_parameters() if name in distiller.new_parameters}
        for group in list(optimizer.param_groups):
            others = [p for p in group["params"] if id(p) not in new]
            group["params"] = [p for p in group["params"] if id(p) in new]
            if others:
                optimizer.add_param_group({**group, "params": others, "lr": config.others * group["lr"]})
        return optimizer
