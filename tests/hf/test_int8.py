"""Models of Transformers in int8: what they compute, saved and loaded."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

import fastff
from fastff.hf import UltraFastBertConfig, UltraFastBertForMaskedLM, replace_feedforward
from fastff.hf.pretrain import PretrainConfig, pretrain
from fastff.hf.pretrain.precisions import losses_by_precision

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CHEAP = "tree:depth=3,leaf_width=1,trees=4,rank=16,contributing=false,leaf_bias=false,master_width=8"
PEER = "peer:experts=25,heads=2,top_k=3,key_features=8,rank=16,master_width=8"
IDS = torch.arange(24).view(2, 12)


def llama(layer: str = CHEAP) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SIZES, intermediate_size=48, num_key_value_heads=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    return replace_feedforward(model, layer)


def llama_of_experts() -> PreTrainedModel:
    return llama(PEER)


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    return UltraFastBertForMaskedLM(UltraFastBertConfig(**SIZES, feedforward="ultra:depth=3")).eval()


@pytest.mark.parametrize("make", [llama, llama_of_experts, bert])
@torch.no_grad()
def test_saved_and_loaded(make, tmp_path):
    model = make()
    expected = model(IDS).logits
    fastff.quantize(model)
    y = model(IDS).logits
    assert 0 < (y - expected).norm() < 0.1 * expected.norm()
    model.save_pretrained(tmp_path / "one")
    loaded = type(model).from_pretrained(tmp_path / "one")
    assert torch.equal(loaded(IDS).logits, y)
    loaded.save_pretrained(tmp_path / "two")
    assert torch.equal(type(model).from_pretrained(tmp_path / "two")(IDS).logits, y)
    half = type(model).from_pretrained(tmp_path / "one", dtype=torch.bfloat16)
    scales = {name: t for name, t in model.named_buffers() if name.endswith("scale")}
    assert scales
    for name, t in half.named_buffers():
        if name in scales:
            assert torch.equal(t, scales[name])


def test_files_that_lack_bytes_are_refused(tmp_path):
    fastff.quantize(llama()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.out_rows"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"must hold all weights of 'model.layers.1.mlp', they lack out_rows"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_loss_of_a_run_in_each_precision(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the {i % 7} quick brown foxes jump over {i % 5} lazy dogs" for i in range(400)))
    config = PretrainConfig(
        data=str(text),
        objective="causal",
        model="llama",
        shape="hidden_size=16,num_hidden_layers=1,num_attention_heads=2",
        feedforward=CHEAP,
        vocab_size=300,
        length=16,
        start_batch=4,
        end_batch=4,
        batch_size=4,
        tokens=1000,
        validation=8,
    )
    with pytest.raises(ValueError, match="folder must hold a finished run"):
        losses_by_precision(config, tmp_path / "run")
    result = pretrain(config, tmp_path / "run", quiet=True)
    found = losses_by_precision(config, tmp_path / "run")
    assert set(found) == {"float32", "bfloat16", "int8"}
    assert found["float32"] == pytest.approx(result["validation_loss"], abs=1e-5)
    assert found["int8"] == pytest.approx(found["float32"], abs=0.02)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["feedforward"] == CHEAP


@torch.no_grad()
def test_the_model_inside_reads_the_files_of_the_whole_one_and_the_reverse(tmp_path):
    model = fastff.quantize(llama())
    model.save_pretrained(tmp_path / "whole")
    inside = AutoModel.from_pretrained(tmp_path / "whole")
    states = model.model(IDS).last_hidden_state
    assert torch.equal(inside(IDS).last_hidden_state, states)
    inside.save_pretrained(tmp_path / "inside")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "inside")  # with a head of its own
    assert torch.equal(again.model(IDS).last_hidden_state, states)
