"""Models in the authors' released format, made here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def crammed() -> SimpleNamespace:
    """arch(**values), weights(kind), and write(folder, weights, arch, file): a model of theirs."""
    return SimpleNamespace(arch=arch, weights=weights, write=write)


def arch(**values: Any) -> dict[str, Any]:
    """The configuration of the shipped models, small."""
    embedding = {"vocab_size": 50, "pos_embedding": "scaled-sinusoidal", "pad_token_id": 0, "max_seq_length": 128}
    return {
        "num_transformer_layers": 2,
        "intermed_type": "fff",
        "hidden_size": 16,
        "intermed_size": 2,
        "intermed_depth": 3,
        "hidden_dropout_prob": 0.1,
        "norm": "LayerNorm",
        "norm_eps": 1e-12,
        "norm_scheme": "pre",
        "nonlin": "GELU",
        "tie_weights": True,
        "decoder_bias": False,
        "sparse_prediction": 0.25,
        "embedding": embedding | {"dropout_prob": 0.1, "embedding_dim": 16, "normalization": True},
        "attention": {
            "type": "self-attention",
            "num_attention_heads": 4,
            "dropout_prob": 0.1,
            "rotary_embedding": False,
        },
        "ffn_layer_frequency": 1,
        "skip_head_transform": True,
        "use_bias": False,
        "final_norm": True,
    } | values


def weights(kind: str = "linear") -> dict[str, torch.Tensor]:
    """A state dict of that shape under their names: trees (linear) or a dense layer."""
    torch.manual_seed(1)
    neurons = 30
    found = {
        "encoder.embedding.word_embedding.weight": torch.randn(50, 16),
        "encoder.embedding.pos_embedding.scale_factor": torch.tensor([0.3]),
    }
    norms = ["encoder.embedding.norm", "encoder.final_norm"]
    for i in range(2):
        layer = f"encoder.layers.{i}"
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
        found[f"{layer}.attn.self_attention.query_key_value.weight"] = torch.randn(48, 16)
        found[f"{layer}.attn.self_attention.norm_factor"] = torch.tensor(0.5)
        found[f"{layer}.attn.dense.weight"] = torch.randn(16, 16)
        found[f"{layer}.ffn.{kind}_in.weight"] = torch.randn(neurons, 16)
        found[f"{layer}.ffn.{kind}_out.weight"] = torch.randn(16, neurons)
        if kind == "linear":
            found[f"{layer}.ffn.linear_in.bias"] = torch.randn(neurons)
    for name in norms:
        found |= {f"{name}.weight": torch.rand(16), f"{name}.bias": torch.rand(16)}
    return found | {"decoder.weight": found["encoder.embedding.word_embedding.weight"].clone()}


def write(folder: Path, weights: Any, arch: Any, file: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "crammedBERT", "vocab_size": 50, "arch": arch}))
    if file.endswith("bin"):
        torch.save(weights, folder / file)
    else:
        save_file(weights, folder / file)
    return folder
