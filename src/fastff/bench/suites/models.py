"""Forward of UltraFastBERT by feedforward layer, beside Transformers' own BERT: what the layer is worth in a model.

The bound is the same model with its feedforward layers left out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fastff.bench.group import Group
from fastff.bench.inputs import Sequences
from fastff.bench.settings import Settings
from fastff.bench.suites.layers import moe_shape, tree_shapes
from fastff.bench.suites.suite import Suite
from fastff.bench.transformer import Family, Forward, Layer, batch_of, heads, hidden_size, need_transformers
from fastff.nn import build_layer

LENGTH = 128
TOKENS = (128, 1024)
LAYERS, VOCABULARY = 16, 32768
BUDGET = 1.5  # seconds, so that all take less than six minutes; a larger --budget keeps slow models in
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def groups(s: Settings) -> list[Group]:
    """The encoder alone, and with the logits of all positions; each dtype is a family, which goes before the next."""
    need_transformers()
    wraps: dict[str, Callable[[Any], nn.Module]] = {
        "encoder": lambda model: Forward(model.base_model),
        "masked LM": Forward,
    }
    base = _dense(s.width)
    found = []
    for name, dtype in DTYPES.items():
        family = Family(
            s,
            layers=s.layers or LAYERS,
            vocabulary=VOCABULARY,
            activation="gelu",
            dtype=dtype,
            stack=partial(_stack, s),
            exchange=partial(_exchange, s),
        )
        for kind, wrap in wraps.items():
            candidates = [family.candidate(layer, wrap, base=layer == base) for layer in _layers(s)]
            for tokens in s.tokens or TOKENS:
                inputs = partial(_ids, *batch_of(tokens, LENGTH))
                found.append(Group(f"{kind}, {name}", tokens, candidates, inputs, family.check, BUDGET))
    return found


def _layers(s: Settings) -> list[Layer]:
    experts, width = moe_shape(s)
    found = [
        Layer("no feedforward (bound)", "bound"),
        Layer(f"UltraFFF {s.trees}x{s.depth}", "ultra", f"ultra:depth={s.depth},trees={s.trees}"),
        *[
            Layer(f"Tree d{d} l{w}", "tree", f"tree:depth={d},leaf_width={w},trees={s.trees}")
            for d, w in tree_shapes(s)[:2]
        ],
        *[_dense(w) for w in (s.executed, 4 * s.in_features, s.width)],
        Layer(f"MoE {experts} x {width}, top 2", "moe", f"moe:experts={experts},expert_width={width}"),
        Layer(f"BERT {4 * s.in_features}, Transformers", "dense", width=4 * s.in_features),
    ]
    return list(dict.fromkeys(found))


def _dense(width: int) -> Layer:
    return Layer(f"dense {width}", "dense", f"dense:width={width}")


def _ids(batch: int, length: int, seed: int) -> Sequences:
    return Sequences(batch, length, vocabulary=VOCABULARY, seed=seed)


def _stack(s: Settings) -> Any:
    from fastff.hf import UltraFastBertConfig, UltraFastBertForMaskedLM

    return UltraFastBertForMaskedLM(
        UltraFastBertConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden_size(s),
            num_hidden_layers=s.layers or LAYERS,
            num_attention_heads=heads(s),
            max_position_embeddings=LENGTH,
            feedforward=None,
        )
    )


def _exchange(s: Settings, model: Any, layer: Layer) -> Any:
    if layer.kind == "dense" and layer.name is None:
        return _bert(s, model)
    if layer.name is not None:
        model.config.feedforward = layer.name
        for block in model.model.layers:
            block.feedforward_norm = nn.LayerNorm(s.in_features, eps=model.config.layer_norm_eps)
            block.feedforward = build_layer(layer.name, s.in_features, activation=model.config.hidden_act)
    return model


def _bert(s: Settings, model: Any) -> Any:
    """Transformers' BERT of the same shape, which shares the embedding alone."""
    from transformers import BertConfig, BertForMaskedLM

    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=s.in_features,
            num_hidden_layers=s.layers or LAYERS,
            num_attention_heads=heads(s),
            intermediate_size=4 * s.in_features,
        )
    )
    bert.set_input_embeddings(model.get_input_embeddings())
    bert.tie_weights()
    return bert


SUITE = Suite("UltraFastBERT by feedforward layer, inference", groups, rounds=11)
