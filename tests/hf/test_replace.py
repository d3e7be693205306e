"""Feedforward layers replaced in models of Transformers: what is replaced, and what stays."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel
from transformers.activations import ACT2FN

from fastff.hf import UltraFastBertConfig
from fastff.hf.recommended import with_options
from fastff.hf.replace import FeedForwardConfig, feedforward_modules, replace_feedforward
from fastff.hf.replace.activation import nearest_activation
from fastff.nn import FeedForwardLayer, TreeFeedForward

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {name: SMALL[name] for name in list(SMALL)[:5]} | {"pad_token_id": 1}
IMAGE = {name: SMALL[name] for name in list(SMALL)[1:5]} | {"image_size": 16, "patch_size": 8}
GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 48, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"vocab_size": 40, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": 40,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
# model type, configuration, first module found, modules found, their activation
FOUND = [
    ("llama", SMALL, "layers.0.mlp", 2, "silu"),
    ("qwen2", SMALL, "layers.0.mlp", 2, "silu"),
    ("qwen3", SMALL, "layers.0.mlp", 2, "silu"),
    ("mistral", SMALL, "layers.0.mlp", 2, "silu"),
    ("phi3", SMALL, "layers.0.mlp", 2, "silu"),
    ("gemma2", SMALL, "layers.0.mlp", 2, "gelu"),
    ("gemma3_text", SMALL, "layers.0.mlp", 2, "gelu"),
    ("gpt2", GPT2, "h.0.mlp", 2, "gelu"),
    ("bert", ENCODER, "encoder.layer.0.intermediate", 2, "gelu"),
    ("roberta", ENCODER, "encoder.layer.0.intermediate", 2, "gelu"),
    ("albert", ENCODER | {"embedding_size": 8}, "encoder.albert_layer_groups.0.albert_layers.0.ffn", 1, "gelu"),
    ("vit", IMAGE, "layers.0.mlp", 2, "gelu"),
    ("t5", T5, "encoder.block.0.layer.1.DenseReluDense", 4, "relu"),
    ("t5", T5 | {"feed_forward_proj": "gated-gelu"}, "encoder.block.0.layer.1.DenseReluDense", 4, "gelu"),
    ("bart", BART, "encoder.layers.0.fc1", 4, "gelu"),
]
TREE = "tree:depth=2,leaf_width=3"


def _config(kind: str, options: dict[str, Any]) -> Any:
    return AutoConfig.for_model(kind, **options)


def _causal(kind: str = "llama", options: dict[str, Any] = SMALL) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(_config(kind, options)).eval()


def _inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    ids = torch.randint(3, 40, (2, 7), generator=generator)
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {})


def _output(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(**_inputs(model))[0]


def _layers(model: nn.Module) -> dict[str, FeedForwardLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, FeedForwardLayer)}


@pytest.mark.parametrize(("kind", "options", "first", "count", "activation"), FOUND)
def test_found_and_replaced(kind: str, options: dict[str, Any], first: str, count: int, activation: str) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(_config(kind, options)).eval()
    found = feedforward_modules(model)
    assert next(iter(found)) == first
    assert len(found) == count
    assert {(f.features, f.width, f.activation) for f in found.values()} == {(32, 48, activation)}

    kept = {name: p.clone() for name, p in model.state_dict().items()}
    before = _output(model)
    assert replace_feedforward(model, TREE) is model
    layers = _layers(model)
    assert len(layers) == count
    assert all(type(layer) is TreeFeedForward and layer.activation == activation for layer in layers.values())
    state = model.state_dict()
    new = {name for name in state if any(name.startswith(layer) for layer in layers)}
    assert new.isdisjoint(kept)
    assert all(torch.equal(state[name], kept[name]) for name in state.keys() - new)
    gone = sum(p.numel() for name, p in kept.items() if name not in state)
    assert gone >= count * 2 * 32 * 48 / 2  # of every one the matrices, and nothing beyond gate and biases
    assert gone <= count * (3 * 32 * 48 + 48 + 32)
    after = _output(model)
    assert after.isfinite().all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("kind", "options"), [("gpt2", GPT2), ("bert", ENCODER), ("t5", T5), ("bart", BART), ("albert", ENCODER)]
)
def test_what_surrounds_the_function_stays(kind: str, options: dict[str, Any]) -> None:
    """A dense layer with the weights of what it replaces computes the same, dropout of the residual included."""
    torch.manual_seed(0)
    options = options | {"hidden_act": "gelu", "activation_function": "gelu", "activation_dropout": 0.5}
    model = AutoModel.from_config(_config(kind, options))
    dense = copy.deepcopy(model)
    for module in dense.modules():
        if hasattr(module, "activation_dropout"):  # of hidden neurons, part of the function
            module.activation_dropout = 0.0
    names = list(feedforward_modules(model))
    replace_feedforward(model, "dense:width=48")
    for name in names:
        layer = model.get_submodule(name)
        layer = layer.feedforward if isinstance(layer, nn.Sequential) else layer
        _copy_dense(layer, dense, name)
    assert torch.allclose(_output(dense.eval()), _output(model.eval()), atol=1e-5)
    if kind != "t5":  # which drops hidden neurons, too
        outputs = []
        for each in (dense, model):
            torch.manual_seed(3)
            outputs.append(_output(each.train()))
        assert torch.allclose(*outputs, atol=1e-5)


def _copy_dense(layer: Any, dense: nn.Module, name: str) -> None:
    parent = dense.get_submodule(name.rpartition(".")[0])
    module = dense.get_submodule(name)
    if name.endswith("intermediate"):
        up, down = module.dense, parent.output.dense
    elif isinstance(module, nn.Linear):
        up, down = module, parent.fc2 if hasattr(parent, "fc2") else parent.ffn_output
    else:
        up, down = (m for m in module.children() if hasattr(m, "weight"))
    transposed = not isinstance(up, nn.Linear)
    with torch.no_grad():
        layer.w1.copy_(up.weight.T if transposed else up.weight)
        layer.w2.copy_(down.weight if transposed else down.weight.T)
        for bias, linear in ((layer.b1, up), (layer.b2, down)):
            bias.zero_() if linear.bias is None else bias.copy_(linear.bias)


class _Mlp(nn.Module):
    """8 -> 12 -> 8; `forward` is what a test gives."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.act, self.drop = nn.Linear(8, 12), nn.Linear(12, 8), nn.GELU(), nn.Dropout(0.1)
        self.compute = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(self, x)


@pytest.mark.parametrize(
    ("forward", "found"),
    [
        (lambda m, x: m.down(m.act(m.up(x))), True),
        (lambda m, x: m.drop(m.down(m.act(m.up(x)))), True),
        (lambda m, x: m.down(m.drop(m.act(m.up(x)))), True),
        (lambda m, x: x + m.down(m.act(m.up(x))), False),  # the residual would be lost
        (lambda m, x: nn.functional.dropout(m.down(m.act(m.up(x)))), False),
        (lambda m, x: m.down(m.act(m.up(x.clamp(max=3)))), False),
        (lambda m, x: m.down(m.up(m.act(x))), False),
        (lambda m, x: m.act(m.down(m.up(x))), False),
        (lambda m, x: m.down(m.up(x)), False),
        (lambda m, x: m.down(m.act(m.up(x)))[0], False),
        (lambda m, x: m.down(m.act(m.up(x.missing))), False),
    ],
)
def test_only_the_function_itself_is_found(forward: Callable[[Any, torch.Tensor], torch.Tensor], found: bool) -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([_Mlp(forward)]), "head": _Mlp(forward)})
    before = torch.get_rng_state()
    assert list(feedforward_modules(model)) == (["layers.0"] if found else [])
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layer", ["ultra:depth=3", "fff:depth=2,leaf_width=2", "moe:experts=3,expert_width=4,top_k=2"])
def test_every_layer(layer: str) -> None:
    model = replace_feedforward(_causal(), layer)
    assert len(_layers(model)) == 2
    assert _output(model).isfinite().all()


@pytest.mark.parametrize("name", ["tree", "peer"])
def test_a_name_alone_stands_for_options_which_are_recorded(name: str, tmp_path: Path) -> None:
    model = replace_feedforward(_causal(), name)
    said = model.config.quantization_config.layer
    assert said == with_options(name, SMALL["hidden_size"]) + ",activation=silu"
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["layer"] == said
    assert torch.equal(_output(AutoModelForCausalLM.from_pretrained(tmp_path)), _output(model))
    assert with_options(TREE, 32) == TREE
    bert = UltraFastBertConfig(hidden_size=32, num_attention_heads=2, feedforward=name)
    assert bert.feedforward == with_options(name, 32, masked=True)
    assert bert.feedforward in said
    assert (",standardise=true" in said) == (name == "tree")
    for kind in (AutoModelForMaskedLM, AutoModel):
        masked = kind.from_config(_config("roformer", SMALL))
        assert "standardise" not in replace_feedforward(masked, name).config.quantization_config.layer
    decoder = AutoModelForCausalLM.from_config(_config("roformer", SMALL | {"is_decoder": True}))
    assert ("standardise" in replace_feedforward(decoder, name).config.quantization_config.layer) == (name == "tree")


def test_patterns_choose_layers() -> None:
    model = _causal("llama", SMALL | {"num_hidden_layers": 5})
    replace_feedforward(model, TREE, ["model.layers.[1-3].mlp"])
    assert list(_layers(model)) == [f"model.layers.{i}.mlp" for i in (1, 2, 3)]
    assert model.config.quantization_config.modules == list(_layers(model))
    encoder_only = AutoModel.from_config(_config("t5", T5))
    replace_feedforward(encoder_only, TREE, ["encoder.*"])
    assert len(_layers(encoder_only)) == 2


def test_dtype_device_and_mode_are_kept() -> None:
    model = _causal().to(torch.bfloat16).train()
    replace_feedforward(model, TREE)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(layer.training for layer in _layers(model).values())
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(_config("llama", SMALL)).eval()
    replace_feedforward(skeleton, TREE)
    assert all(p.is_meta for p in skeleton.parameters())
    assert not any(layer.training for layer in _layers(skeleton).values())


def test_activation_given_or_taken() -> None:
    assert {layer.activation for layer in _layers(replace_feedforward(_causal(), TREE)).values()} == {"silu"}
    given = replace_feedforward(_causal(), "ultra:depth=2,activation=relu")
    assert {layer.activation for layer in _layers(given).values()} == {"relu"}
    assert given.config.quantization_config.layer == "ultra:depth=2,activation=relu"


def test_nearest_activation() -> None:
    for name, expected in [("quick_gelu", "gelu"), ("gelu_10", "gelu"), ("swish", "silu"), ("linear", "identity")]:
        assert nearest_activation(ACT2FN[name]) == expected
    assert nearest_activation(nn.ReLU(inplace=True)) == "relu"
    assert nearest_activation(ACT2FN["relu2"]) is None


def _two_kinds() -> PreTrainedModel:
    model = _causal()
    model.model.layers[1].mlp.act_fn = nn.ReLU()
    return model


def _unknown_kind() -> PreTrainedModel:
    return _causal("llama", SMALL | {"hidden_act": "mish"})


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (_causal, ("tee:depth=2",), "layer must be one of"),
        (_causal, ("__import__",), "layer must be one of"),
        (_causal, ("tree:depth=2",), "leaf_width"),
        (_causal, ("tree:depth=-1,leaf_width=1",), "depth must be at least 0"),
        (_causal, ("tree:depth=60,leaf_width=1",), "depth of at most 32"),
        (_causal, (f"tree:depth=2,leaf_width={10**30}",), "leaf_width of at most"),
        (_causal, ("tree:depth=30,leaf_width=2000000000,trees=2000000000",), "too large"),
        (_causal, (TREE, ["model.layers.0.mlp", "model.layers.7.mlp"]), r"got \['model.layers.7.mlp'\]"),
        (_causal, (TREE, ["lm_head"]), r"model.layers.0.mlp.*got \['lm_head'\]"),
        (lambda: replace_feedforward(_causal(), TREE), (TREE,), "no layers of fastff yet"),
        (
            lambda: AutoModel.from_config(_config("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 2})),
            (TREE,),
            "none",
        ),
        (_two_kinds, (TREE,), "those of the modules differ"),
        (_unknown_kind, (TREE,), "none of fastff's"),
    ],
)
def test_refused(make: Callable[[], PreTrainedModel], arguments: tuple[Any, ...], message: str) -> None:
    model = make()
    names = list(dict(model.named_modules()))
    with pytest.raises(ValueError, match=message):
        replace_feedforward(model, *arguments)
    assert list(dict(model.named_modules())) == names


def test_refused_types_and_other_methods() -> None:
    with pytest.raises(TypeError, match="model must be a PreTrainedModel of Transformers, got Linear"):
        replace_feedforward(nn.Linear(3, 3), "ultra:depth=3")
    with pytest.raises(TypeError, match="layer must be a str"):
        FeedForwardConfig(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="modules must be None or a list"):
        FeedForwardConfig(TREE, "model.*")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quant_method must be 'fastff', got 'gptq'"):
        FeedForwardConfig(TREE, quant_method="gptq")
    model = _causal()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ValueError, match="must not be quantised.*'gptq'"):
        replace_feedforward(model, TREE)


def test_other_models_of_the_same_configuration_stay_as_they_are() -> None:
    config = _config("llama", SMALL)
    model, other = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    replace_feedforward(model, TREE)
    assert not hasattr(other.config, "quantization_config")
    assert model.model.config is model.config
    assert model.model.layers[0].self_attn.config is model.config
    assert other.model.config is other.config is config


def test_copies_and_tied_weights() -> None:
    model = replace_feedforward(_causal("llama", SMALL | {"tie_word_embeddings": True}), TREE)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    twin = copy.deepcopy(model)
    assert torch.equal(_output(model), _output(twin))
    assert twin.config.quantization_config == model.config.quantization_config
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("kind", "options"), [("llama", SMALL), ("gpt2", GPT2)])
def test_generation_with_and_without_cache(kind: str, options: dict[str, Any]) -> None:
    model = replace_feedforward(_causal(kind, options), TREE)
    ids = _inputs(model)["input_ids"]
    runs = [
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=5,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert torch.allclose(torch.stack(runs[0].logits), torch.stack(runs[1].logits), atol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_hidden_states_and_gradient_checkpointing() -> None:
    model = replace_feedforward(_causal(), TREE).train()
    inputs = _inputs(model)
    output = model(**inputs, labels=inputs["input_ids"], output_hidden_states=True)
    assert len(output.hidden_states) == 3
    output.loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(grad.abs().sum() > 0 for name, grad in plain.items() if "node_weight" in name or "leaf_w" in name)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    assert all(torch.allclose(p.grad, plain[name], atol=1e-6) for name, p in model.named_parameters())
