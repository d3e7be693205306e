"""The part of `from_pretrained`: layers in before the weights, then a model as any other."""

import os
import re
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from fastff.hf.replace.config import METHOD, FeedForwardConfig
from fastff.hf.replace.exchange import exchange
from fastff.nn import FeedForwardLayer, TreeFeedForward
from fastff.nn.int8_layer import Int8Layer

# What files lack since `merge_base`, see `_complete`.
TRAINING = re.compile(r"(^|\.)(base_[wb][12]|standard\.(mean|variance|newest|batches))$")


class FeedForwardQuantizer(HfQuantizer):
    """Replaces the feedforward layers of a model while it is loaded; afterwards nothing of it stays but the record.

    `pre_quantized` is Transformers' word for: the files hold our layers. Otherwise they start anew.
    """

    quantization_config: FeedForwardConfig

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        self.quantization_config = exchange(model, self.quantization_config, partly=self.pre_quantized)
        self._ignored = model._keys_to_ignore_on_load_missing
        if self.pre_quantized:
            _to_int8(model, checkpoint_files or [])
        self._shapes = {name: {key: t.shape for key, t in _stored(layer).items()} for name, layer in _layers(model)}
        if self.pre_quantized:
            _check_size(model, self.quantization_config.layer, checkpoint_files or [])
            model._keys_to_ignore_on_load_missing = [*(self._ignored or []), TRAINING.pattern]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        model._keys_to_ignore_on_load_missing = self._ignored
        for name, layer in _layers(model):
            _check_shapes(name, layer, self._shapes[name])
            _complete(name, layer, new=not self.pre_quantized)
        # The work is done, and Transformers, its Trainer and other libraries refuse much to models that have these.
        del model.hf_quantizer, model.is_quantized, model.quantization_method
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                vars(module.config).pop("_is_quantized", None)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _layers(model: PreTrainedModel) -> Iterator[tuple[str, FeedForwardLayer]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, FeedForwardLayer))


def _stored(layer: FeedForwardLayer) -> dict[str, Tensor]:
    """Parameters, and the buffers that they are in int8."""
    return dict(layer.named_parameters()) | dict(layer.named_buffers())


def _to_int8(model: PreTrainedModel, files: list[str]) -> None:
    """Turn those layers into int8 of which the files have bytes, so that the bytes find their place."""
    stored: set[str] = set()
    for file in files:
        if file.endswith(".safetensors"):
            try:
                with safe_open(file, "pt") as opened:
                    stored |= {key.removesuffix(".in_rows") for key in opened.keys() if key.endswith(".in_rows")}  # noqa: SIM118
            except SafetensorError as error:
                raise ValueError(f"{file} must be a safetensors file, it is damaged: {error}") from None
    for name, layer in _layers(model):
        # A file of a whole model may be read by the model inside, and the reverse.
        if isinstance(layer, Int8Layer) and any(
            f".{n}".endswith(f".{name}") or f".{name}".endswith(f".{n}") for n in stored
        ):
            layer.quantize()


def _check_size(model: PreTrainedModel, layer: str, files: list[str]) -> None:
    """Refuse a layer larger than the files: Transformers would allocate what they lack."""
    stored = sum(os.path.getsize(file) for file in files)
    needed = sum(t.numel() for _, module in _layers(model) for t in _stored(module).values())
    if files and needed > stored:
        raise ValueError(f"layer {layer!r} has {needed} parameters, more than the {stored} bytes of weights can hold")


def _check_shapes(name: str, layer: FeedForwardLayer, expected: dict[str, torch.Size]) -> None:
    """Refuse weights of another layer: Transformers 5.17 took any shape from the files of a quantised model."""
    for key, p in _stored(layer).items():
        if p.shape != expected[key]:
            found, wanted = tuple(p.shape), tuple(expected[key])
            raise ValueError(f"the files must have '{name}.{key}' in the shape {wanted} of config.json, got {found}")


def _complete(name: str, layer: FeedForwardLayer, new: bool) -> None:
    """Bring a layer whose weights were loaded, as far as the files had them, into its final state."""
    parameters = _stored(layer)
    if any(p.is_meta for p in parameters.values()):
        raise ValueError(f"{name!r} was offloaded, which fastff's layers cannot be: choose another device_map")
    missing = {key for key, p in parameters.items() if not getattr(p, "_is_hf_initialized", False)}
    if not missing:
        return
    if new and len(missing) == len(parameters):
        layer.reset_parameters()
    elif isinstance(layer, TreeFeedForward) and missing == set(filter(TRAINING.search, parameters)):
        layer.standard = None  # saved after `merge_base`
        with torch.no_grad():
            for key in missing:
                parameters[key].zero_()
        layer.merge_base()
    else:
        raise ValueError(f"the files must hold all weights of {name!r}, they lack {', '.join(sorted(missing))}")


# Not by Transformers' decorators: those refuse a module that is imported again.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = FeedForwardConfig
AUTO_QUANTIZER_MAPPING[METHOD] = FeedForwardQuantizer
