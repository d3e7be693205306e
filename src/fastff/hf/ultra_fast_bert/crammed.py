"""The authors' released format (`model_type: crammedBERT`): its config.json and its weights, translated into ours."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME, cached_file

MODEL_TYPE = "crammedBERT"

# What their configuration can say that changes the function, and the one value that UltraFastBERT has.
_FIXED = {
    "norm": "LayerNorm",
    "norm_scheme": "pre",
    "nonlin": "GELU",
    "tie_weights": True,
    "decoder_bias": False,
    "ffn_layer_frequency": 1,
    "skip_head_transform": True,
    "use_bias": False,
    "final_norm": True,
    "embedding.pos_embedding": "scaled-sinusoidal",
    "embedding.normalization": True,
    "attention.type": "self-attention",
    "attention.causal_attention": False,
    "attention.skip_output_projection": False,
    "attention.qkv_bias": False,
    "attention.rotary_embedding": False,
}

_NAMES = {
    "encoder.embedding.word_embedding.weight": "model.embeddings.word_embeddings.weight",
    "encoder.embedding.pos_embedding.scale_factor": "model.embeddings.position_scale",
    "encoder.embedding.norm": "model.embeddings.norm",
    "encoder.final_norm": "model.final_norm",
    "encoder.layers": "model.layers",
    "attn.self_attention.query_key_value": "attention.query_key_value",
    "attn.dense": "attention.dense",
    "norm1": "attention_norm",
    "norm2": "feedforward_norm",
}


def translate_config(config: dict[str, Any]) -> dict[str, Any]:
    """Their config.json as the keyword arguments of `UltraFastBertConfig`; keys of Transformers' own are kept.

    Raises:
        ValueError: a setting is missing, or says something that UltraFastBERT's architecture does not have.
    """
    config = dict(config)
    arch = config.pop("arch", None)
    if not isinstance(arch, dict):
        raise ValueError(f"config.json of a {MODEL_TYPE} must have a dictionary 'arch', got {type(arch).__name__}")
    for name, expected in _FIXED.items():
        found = _setting(arch, name, expected)
        if found != expected:
            raise ValueError(f"config.json, arch.{name}: {found!r}; UltraFastBERT has {expected!r}")
    hidden, positions = _setting(arch, "hidden_size"), _setting(arch, "embedding.max_seq_length")
    if (embedding := _setting(arch, "embedding.embedding_dim")) != hidden:
        raise ValueError(f"config.json, arch.embedding.embedding_dim: {embedding!r}; expected hidden_size, {hidden!r}")
    width, depth = _setting(arch, "intermed_size"), arch.get("intermed_depth")
    is_tree = _setting(arch, "intermed_type") == "fff"
    pooler = _setting(arch, "classification_head.pooler", "zero_index")
    config |= {
        "model_type": "ultrafastbert",
        "vocab_size": _setting(arch, "embedding.vocab_size"),
        "hidden_size": hidden,
        "num_hidden_layers": _setting(arch, "num_transformer_layers"),
        "num_attention_heads": _setting(arch, "attention.num_attention_heads"),
        "max_position_embeddings": positions,
        "feedforward": f"ultra:depth={depth},trees={width}" if is_tree else f"dense:width={width}",
        "hidden_dropout_prob": _setting(arch, "hidden_dropout_prob", 0.1),
        "attention_probs_dropout_prob": _setting(arch, "attention.dropout_prob", 0.1),
        "layer_norm_eps": _setting(arch, "norm_eps", 1e-12),
        "initializer_range": _setting(arch, "init.std", 0.02),
        "pad_token_id": _setting(arch, "embedding.pad_token_id", 0),
        "sparse_prediction": bool(_setting(arch, "sparse_prediction", True)),
        "classifier_pooling": "mean" if pooler == "avg" else "first",
        "classifier_hidden_size": _setting(arch, "classification_head.head_dim", 1024),
        "classifier_dropout": _setting(arch, "classification_head.classifier_dropout", 0.1),
        "architectures": ["UltraFastBertForMaskedLM"],
    }
    return config


def read_weights(name: str, **hub: Any) -> dict[str, Tensor]:
    """Their weights of the model `name`, a folder or hub id, by their own names. Nothing in the file is run.

    Raises:
        OSError: there are none, or they are damaged or hold anything but tensors.
    """
    for file in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
        if path is not None:
            break
    else:
        raise OSError(f"{name} has no weights: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}")
    try:
        if path.endswith(".safetensors"):
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            weights = weights.get("model", weights) if isinstance(weights, dict) else weights
    except (SafetensorError, OSError):
        raise OSError(f"{Path(path).name} of {name} is damaged: no safetensors file") from None
    except Exception as error:  # a cut or hostile pickle makes torch.load raise nearly anything
        raise OSError(
            f"{Path(path).name} of {name} is damaged, or holds more than tensors: {type(error).__name__}"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise OSError(f"{Path(path).name} of {name} holds more than tensors by name")
    return weights


def translate_weights(weights: dict[str, Tensor], head_size: int, trees: int) -> dict[str, Tensor]:
    """Their state dict as one of `UltraFastBertForMaskedLM`, without the decoder, which is tied to the embedding.

    Args:
        weights: by their names; `encoder.layers.I.ffn.linear_in.weight` is (trees * nodes, hidden).
        head_size: hidden size over attention heads.
        trees: K; 1 for a dense layer.

    Raises:
        ValueError: an entry is not one of theirs.
    """
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith("attn.self_attention.norm_factor"):
            if value.numel() != 1 or not math.isclose(value.item(), head_size**-0.5, rel_tol=1e-3):
                raise ValueError(f"{name} must be 1 / sqrt(head size) = {head_size**-0.5:.6g}, got {value}")
        elif name == "decoder.weight":  # a file may leave out the embedding for it
            ours.setdefault("model.embeddings.word_embeddings.weight", value)
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.ffn\.(linear|dense)_(in|out)\.(weight|bias)", name):
            layer, kind, side, what = match.groups()
            translated = (_tree if kind == "linear" else _dense)(side, what, value, trees)
            ours |= {f"model.layers.{layer}.feedforward.{key}": tensor for key, tensor in translated.items()}
        elif not name.endswith("pos_embedding.pe"):
            ours[_rename(name)] = value
    return ours


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `weights` has the entries of `expected`, in their shapes."""
    for name in sorted(weights.keys() ^ expected.keys()):
        said = "lack" if name in expected else "have, beyond the model of config.json,"
        raise ValueError(f"the weights {said} an entry that is {name!r} in fastff")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            found, wanted = tuple(value.shape), tuple(expected[name].shape)
            raise ValueError(f"the weights have, as {name!r} in fastff, the shape {found}; config.json says {wanted}")


def _tree(side: str, what: str, value: Tensor, trees: int) -> dict[str, Tensor]:
    """Rows (trees * nodes) become (trees, nodes); the second matrix is theirs by columns, ours by rows."""
    rows = value.T if (side, what) == ("out", "weight") and value.dim() == 2 else value
    if rows.dim() and rows.shape[0] % trees == 0:
        rows = rows.reshape(trees, -1, *rows.shape[1:])
    return {f"{'w' if what == 'weight' else 'b'}_{side}": rows}


def _dense(side: str, what: str, value: Tensor, trees: int) -> dict[str, Tensor]:
    """Their dense layer has no biases, ours does."""
    number = 1 if side == "in" else 2
    if what == "bias":
        return {f"b{number}": value}
    return {f"w{number}": value.T if side == "out" else value, f"b{number}": value.new_zeros(value.shape[:1])}


def _rename(name: str) -> str:
    renamed = name
    for theirs, ours in _NAMES.items():
        renamed = re.sub(rf"(^|\.){re.escape(theirs)}(?=\.|$)", rf"\g<1>{ours}", renamed)
    if renamed == name:
        raise ValueError(f"the weights have an entry {name!r}, which a {MODEL_TYPE} does not have")
    return renamed


def _setting(arch: dict[str, Any], name: str, default: Any = None) -> Any:
    """The setting `name`, a path with dots, or the default; ValueError if there is neither."""
    value: Any = arch
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"config.json of a {MODEL_TYPE} must have the setting arch.{name}")
    return value
