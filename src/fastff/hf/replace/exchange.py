"""Layers into a model, in place of its feedforward functions."""

import copy
from collections import OrderedDict
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from fastff.hf.recommended import with_options
from fastff.hf.replace.config import METHOD, FeedForwardConfig
from fastff.hf.replace.find import feedforward_modules
from fastff.hf.replace.function import FeedForwardFunction
from fastff.nn import FeedForwardLayer, build_layer, parse_layer


def replace_feedforward(model: PreTrainedModel, layer: str, modules: list[str] | None = None) -> PreTrainedModel:
    """Replace the feedforward functions of `model` by new layers, in place; everything else stays.

    That includes residuals, normalisations and the dropout after the function; gates and the dropout on hidden neurons
    are part of the function. The layers have the dtype, the device and the mode of what they replace.
    `model.config.quantization_config` records it: `save_pretrained` and `from_pretrained` need nothing else. Models
    made by `from_config` need this call; Transformers reads the record only where it loads weights.

    Args:
        model: any model of Transformers, fresh or pretrained.
        layer, modules: as of `FeedForwardConfig`.

    Returns:
        `model`.

    Raises:
        TypeError, ValueError: a wrong argument; nothing matches; `model` has layers of ours already, or is quantised;
            or `layer` says no activation and those of the replaced functions differ or are none of ours.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a PreTrainedModel of Transformers, got {type(model).__name__}")
    config = FeedForwardConfig(layer, modules)
    recorded = getattr(model.config, "quantization_config", None) or {}
    method = dict(recorded).get("quant_method", METHOD)
    if method != METHOD:
        raise ValueError(f"model must not be quantised, got one with the quantization method {method!r}")
    record = exchange(model, config)
    _own_config(model).quantization_config = record
    return model


def exchange(model: PreTrainedModel, config: FeedForwardConfig, partly: bool = False) -> FeedForwardConfig:
    """Replace what `config` says.

    Args:
        partly: whether `model` may lack some of the modules, as an encoder alone does.

    Returns:
        `config` with the names of the replaced modules and all options, so that loading depends on nothing else.
    """
    present = next((name for name, module in model.named_modules() if isinstance(module, FeedForwardLayer)), None)
    if present is not None:
        raise ValueError(f"model must have no layers of fastff yet, got one with {present!r}")
    chosen = _choose(feedforward_modules(model), config.modules, model.base_model_prefix, partly)
    features = max(function.features for function in chosen.values())
    layer = _with_activation(with_options(config.layer, features, masked=_sees_both_sides(model)), chosen)
    for name, function in chosen.items():
        _put(model, name, function, layer)
    return FeedForwardConfig(layer, list(chosen))


def _sees_both_sides(model: PreTrainedModel) -> bool:
    """Whether `model`, with whatever head, is of a kind that is trained on masked tokens, and no decoder."""
    return type(model.config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(model.config, "is_decoder", False)


def _own_config(model: PreTrainedModel) -> Any:
    """Give `model` a configuration that it shares with no other: `from_config` makes models share theirs."""
    shared, own = model.config, copy.copy(model.config)
    holders: list[Any] = [module for module in model.modules() if getattr(module, "config", None) is shared]
    for module in holders:
        module.config = own
    return own


def _choose(
    found: dict[str, FeedForwardFunction], patterns: list[str] | None, prefix: str, partly: bool
) -> dict[str, FeedForwardFunction]:
    if not found:
        raise ValueError("model must have feedforward modules, found none")
    if patterns is None:
        return found
    # A file says "model.layers.0.mlp", the model inside is loaded from it as "layers.0.mlp", and the reverse.
    names = {name: (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")) for name in found}
    matches = {p: {name for name in found if any(fnmatchcase(n, p) for n in names[name])} for p in patterns}
    chosen = set().union(*matches.values())
    unmatched = [pattern for pattern in patterns if not matches[pattern]]
    if not chosen or (unmatched and not partly):
        raise ValueError(f"modules must match feedforward modules of the model, {', '.join(found)}; got {unmatched}")
    return {name: function for name, function in found.items() if name in chosen}


def _with_activation(layer: str, functions: dict[str, FeedForwardFunction]) -> str:
    if "activation" in parse_layer(layer)[1]:
        return layer
    activation, *more = {function.activation for function in functions.values()}
    if activation is None or more:
        what = "those of the modules differ" if more else f"that of {next(iter(functions))} is none of fastff's"
        raise ValueError(f"layer must say an activation, for {what}; got {layer!r}")
    return f"{layer}{',' if ':' in layer else ':'}activation={activation}"


def _put(model: PreTrainedModel, name: str, function: FeedForwardFunction, text: str) -> None:
    with torch.device(function.device):
        layer: nn.Module = build_layer(text, function.features).to(function.dtype)
    if function.dropout is not None:
        layer = nn.Sequential(OrderedDict(feedforward=layer, dropout=function.dropout))
    layer.train(model.get_submodule(name).training)
    model.set_submodule(name, layer)
    for other in function.others:
        model.set_submodule(other, nn.Identity())
    block: Any = model.get_submodule(name.rpartition(".")[0])
    if function.others and hasattr(block, "activation_dropout"):
        block.activation_dropout = 0.0  # of the hidden neurons, between what are now the layer and an identity
