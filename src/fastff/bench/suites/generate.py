"""Greedy generation with a small Llama, whose gated feedforward layers are replaced: new tokens, with a cache.

In float32, and with all products in int8: ours as `fastff.quantize` has them, others in PyTorch's dynamic int8. The
bound is the same model, its feedforward layers replaced by something that returns zeros.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastff.bench.group import Group
from fastff.bench.inputs import Sequences
from fastff.bench.settings import Settings
from fastff.bench.suites.layers import tree_shapes
from fastff.bench.suites.suite import Suite
from fastff.bench.transformer import Family, Layer, batch_of, heads, hidden_size, need_transformers

PROMPT, NEW = 32, 64
TOKENS = (64, 512)  # new ones
LAYERS, VOCABULARY = 12, 32000
MANY_TREES = 8
BUDGET = 8.0  # seconds; a larger --budget keeps slow models in without taking longer for the others


def groups(s: Settings) -> list[Group]:
    """Of one sequence and of eight, with our own choice of layers or that of the settings."""
    need_transformers()
    layers = _given(s) if s.given else _layers(s)
    base = next((layer for layer in layers if layer.kind == "dense"), layers[0])
    found = []
    for precision in ("float32", "int8"):
        family = Family(
            s,
            layers=s.layers or LAYERS,
            vocabulary=VOCABULARY,
            activation="silu",
            dtype=torch.float32,
            stack=partial(_stack, s),
            exchange=_exchange,
            int8=precision == "int8",
        )
        for tokens in s.tokens or TOKENS:
            batch, new = batch_of(tokens, NEW)
            wrap = partial(Generate, new=new)
            candidates = [family.candidate(layer, wrap, base=layer is base) for layer in layers]
            name, prompts = f"generation, {precision}", partial(_prompts, batch)
            found.append(Group(name, tokens, candidates, prompts, family.check, BUDGET))
    return found


BOUND = Layer("no feedforward (bound)", "bound")


class Generate(nn.Module):
    """(B, S) ids -> (B, S + new) ids, greedily."""

    def __init__(self, model: Any, new: int) -> None:
        from transformers import GenerationConfig

        super().__init__()
        self.model = model
        self.generation = GenerationConfig(
            do_sample=False, min_new_tokens=new, max_new_tokens=new, use_cache=True, pad_token_id=0
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=self.generation)


class Zeros(nn.Module):
    """In place of a feedforward layer: zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _layers(s: Settings) -> list[Layer]:
    depth, width = tree_shapes(s)[:2][-1]
    half = s.depth // 2
    return [
        BOUND,
        Layer(f"dense {4 * s.in_features}, gated", "dense", width=4 * s.in_features),
        Layer(f"UltraFFF {s.trees}x{s.depth}", "ultra", f"ultra:depth={s.depth},trees={s.trees}"),
        Layer(f"Tree d{depth} l{width}", "tree", f"tree:depth={depth},leaf_width={width},trees={s.trees}"),
        Layer(f"Tree {MANY_TREES}x d{half} l1", "tree", f"tree:depth={half},leaf_width=1,trees={MANY_TREES}"),
    ]


def _given(s: Settings) -> list[Layer]:
    for text in s.given:
        if "@" in text:
            raise ValueError(
                f"layer must have no precision in generate, which runs each model in several, got {text!r}"
            )
    return [BOUND, *[Layer(text, text.partition(":")[0], text) for text in s.given]]


def _prompts(batch: int, seed: int) -> Sequences:
    return Sequences(batch, PROMPT, vocabulary=VOCABULARY, seed=seed)


def _stack(s: Settings) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden_size(s),
            num_hidden_layers=s.layers or LAYERS,
            num_attention_heads=heads(s),
            intermediate_size=4 * s.in_features,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def _exchange(model: Any, layer: Layer) -> Any:
    from fastff.hf.replace import replace_feedforward

    if layer.kind == "bound":
        for block in model.model.layers:
            block.mlp = Zeros()
    return model if layer.name is None else replace_feedforward(model, layer.name)


SUITE = Suite("greedy generation with a small Llama, tokens are new ones", groups, rounds=5)
