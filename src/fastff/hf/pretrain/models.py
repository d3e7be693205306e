"""The language model that the settings name: a new one, or one with weights, with the feedforward layers of choice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from fastff.hf.pretrain.config import NO_LAYER, ULTRA_FAST_BERT, PretrainConfig
from fastff.hf.replace import replace_feedforward
from fastff.nn.by_name import parse_value

SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


KINDS: dict[str, Any] = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM}  # by objective


def build_model(config: PretrainConfig, tokenizer: Any) -> PreTrainedModel:
    """The model in float32, on the CPU.

    Raises:
        ValueError: there is no such model, value of its shape or layer, or none for this objective and length.
    """
    kind = KINDS[config.objective]
    shape = _from_name(config) if config.from_weights else _shape(config, tokenizer)
    if getattr(shape, "quantization_config", None) and not config.from_weights and not config.feedforward:
        raise ValueError(f"feedforward must be named for a new model like {config.model!r}, whose layers were replaced")
    check_length(shape, config.length)
    with named_if_missing(config.model, config.objective):
        if config.from_weights:
            model = kind.from_pretrained(config.model, dtype=torch.float32)
        else:
            model = kind.from_config(shape, dtype=torch.float32)
    if config.from_weights and model.get_input_embeddings().num_embeddings < len(tokenizer):
        have = model.get_input_embeddings().num_embeddings
        raise ValueError(f"tokenizer must have at most the model's {have} tokens, got {len(tokenizer)}")
    if config.feedforward and (config.from_weights or shape.model_type != ULTRA_FAST_BERT):
        model = replace_feedforward(model, config.feedforward)
    if config.gradient_checkpointing:
        # Transformers has changed its name. Not reentrant: the auxiliary losses need the graph of the forward.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def check_length(shape: PreTrainedConfig, length: int) -> None:
    """ValueError if a model of this configuration has no positions for sequences of `length` tokens."""
    longest = getattr(shape, "max_position_embeddings", None)
    if longest is not None and longest < length:
        raise ValueError(f"length must be at most the model's max_position_embeddings = {longest}, got {length}")


@contextmanager
def named_if_missing(name: str, objective: str) -> Iterator[None]:
    """Around what makes the model called `name`: say so if Transformers has none of its type for this objective."""
    try:
        yield
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(f"model {name!r} has no {objective} language model in Transformers") from None


def read_config(name: str, what: str = "folder or hub id", **values: Any) -> PreTrainedConfig:
    """The configuration of the folder or hub id `name`, with some values changed; ValueError if it is no `what`."""
    try:
        return AutoConfig.from_pretrained(name, **values)
    except Exception as error:  # whatever Transformers, a parser or the network raises, the name is what can be mended
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"model {name!r} is no {what} of Transformers: {first}") from None


def _from_name(config: PretrainConfig, **values: Any) -> PreTrainedConfig:
    """The configuration of a model type, folder or hub id."""
    name = config.model
    if name in CONFIG_MAPPING_NAMES or name == ULTRA_FAST_BERT:
        if config.from_weights:
            raise ValueError(f"model must be a folder or hub id with from_weights, got the model type {name!r}")
        return AutoConfig.for_model(name, **values)
    return read_config(name, "model type, folder or hub id", **values)


def _shape(config: PretrainConfig, tokenizer: Any) -> PreTrainedConfig:
    """The configuration of a new model."""
    default = _from_name(config)
    values: dict[str, Any] = {"vocab_size": len(tokenizer)}
    values |= {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS}
    for item in filter(None, config.shape.split(",")):
        name, equals, value = item.partition("=")
        if not equals or not hasattr(default, name):
            raise ValueError(f"shape must be NAME=VALUE,... of the configuration of {config.model!r}, got {item!r}")
        values[name] = parse_value(value)
    if default.model_type == ULTRA_FAST_BERT:
        values = {
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        } | values  # P2: for fine-tuning
        if config.feedforward:
            values["feedforward"] = None if config.feedforward == NO_LAYER else config.feedforward
    try:
        return _from_name(config, **values)
    except Exception as error:  # the strict configurations of Transformers have a type of their own
        raise ValueError(f"shape {config.shape!r}: {' '.join(str(error).split())}") from None
