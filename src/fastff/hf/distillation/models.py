"""The original of a distillation, and the copy with new layers."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from fastff.hf.distillation.config import DistilConfig
from fastff.hf.distillation.distiller import Distiller
from fastff.hf.replace import FeedForwardFunction, feedforward_modules, replace_feedforward

KINDS: dict[str, Any] = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "embedding": AutoModel}
SUFFIXES = {"ForCausalLM": "causal", "LMHeadModel": "causal", "ForMaskedLM": "masked"}


def read_config(config: DistilConfig) -> PreTrainedConfig:
    """That of the original.

    Raises:
        ValueError: there is no such model, or it is quantised or has layers of ours.
    """
    try:
        found = AutoConfig.from_pretrained(config.model)
    except Exception as error:  # whatever Transformers, a parser or the network raises, the name is what can be mended
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"model {config.model!r} is no folder or hub id of Transformers: {first}") from None
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
    try:
        teacher: PreTrainedModel = KINDS[objective].from_pretrained(config.model, dtype=torch.float32)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(f"model {config.model!r} has no {objective} language model in Transformers") from None
    longest = getattr(teacher.config, "max_position_embeddings", None)
    if longest is not None and longest < config.length:
        raise ValueError(f"length must be at most the model's max_position_embeddings = {longest}, got {config.length}")
    layer = config.feedforward or recommended(feedforward_modules(teacher))
    student = replace_feedforward(copy.deepcopy(teacher), layer, config.patterns)
    names = student.config.quantization_config.modules
    functions = {name: function for name, function in feedforward_modules(teacher).items() if name in names}
    return Distiller(teacher, student, functions, objective)


def recommended(functions: dict[str, FeedForwardFunction]) -> str:
    """The layer to take if none is named: a token runs an eighth of the neurons that it ran."""
    width = max((function.width for function in functions.values()), default=0)
    return f"tree:depth=4,leaf_width={max(1, width // 8)},contributing=false,gradient=none"


def load_distilled(config: DistilConfig, out: str | Path) -> PreTrainedModel:
    """The model that the run in `out` has made, in eval mode."""
    kind = KINDS[objective_of(config, read_config(config))]
    model: PreTrainedModel = kind.from_pretrained(Path(out) / "model").eval()
    return model
