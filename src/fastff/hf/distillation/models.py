"""The original of a distillation, and the copy with new layers."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from fastff.hf.distillation.config import DistilConfig
from fastff.hf.distillation.distiller import Distiller
from fastff.hf.pretrain import models
from fastff.hf.pretrain.models import check_length, named_if_missing, read_config
from fastff.hf.replace import FeedForwardFunction, feedforward_modules, replace_feedforward

KINDS: dict[str, Any] = models.KINDS | {"embedding": AutoModel}
SUFFIXES = {"ForCausalLM": "causal", "LMHeadModel": "causal", "ForMaskedLM": "masked"}


def original_config(config: DistilConfig) -> PreTrainedConfig:
    """That of the original.

    Raises:
        ValueError: there is no such model, or it is quantised or has layers of ours.
    """
    found = read_config(config.model)
    method = dict(getattr(found, "quantization_config", None) or {}).get("quant_method")
    if method == "fastff":
        raise ValueError(f"model must have its original feedforward layers, those of {config.model!r} were replaced")
    if method:
        raise ValueError(f"model must not be quantised, {config.model!r} is, by {method!r}: save it in float32 first")
    return found


def objective_of(config: DistilConfig, found: PreTrainedConfig) -> str:
    """What is kept: what the settings say, or else what the original was saved as."""
    if config.objective:
        return config.objective
    architecture = next(iter(found.architectures or []), "")
    return next((kind for suffix, kind in SUFFIXES.items() if architecture.endswith(suffix)), "embedding")


def build_distiller(config: DistilConfig, objective: str) -> Distiller:
    """Teacher and student in float32, on the CPU; the student's new layers have random weights.

    Raises:
        ValueError: the model has no feedforward layers that match, or they do not fit the layer.
    """
    with named_if_missing(config.model, objective):
        teacher: PreTrainedModel = KINDS[objective].from_pretrained(config.model, dtype=torch.float32)
    check_length(teacher.config, config.length)
    named = config.feedforward
    layer = named if named not in ("", "tree") else recommended(feedforward_modules(teacher))
    student = replace_feedforward(copy.deepcopy(teacher), layer, config.patterns)
    names = student.config.quantization_config.modules
    functions = {name: function for name, function in feedforward_modules(teacher).items() if name in names}
    return Distiller(teacher, student, functions, objective)


def recommended(functions: dict[str, FeedForwardFunction]) -> str:
    """The layer to take if none is named: a token runs an eighth of the neurons that it ran."""
    width = max((function.width for function in functions.values()), default=0)
    gated = any(function.gated for function in functions.values())
    more = ",gated=true" if gated else ""
    return f"tree:depth=4,leaf_width={max(1, width // 8)},contributing=false,gradient=none{more}"


def load_distilled(config: DistilConfig, out: str | Path) -> PreTrainedModel:
    """The model that the run in `out` has made, in eval mode."""
    kind = KINDS[objective_of(config, original_config(config))]
    model: PreTrainedModel = kind.from_pretrained(Path(out) / "model").eval()
    return model
