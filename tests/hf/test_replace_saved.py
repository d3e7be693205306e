"""Models with replaced feedforward layers on disk: saved, loaded, converted, trained, refused."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    T5EncoderModel,
    Trainer,
    TrainingArguments,
)

import fastff
import fastff.hf.replace.quantizer
from fastff.hf.replace import FeedForwardConfig, replace_feedforward
from fastff.nn import FeedForwardLayer, TreeFeedForward

LLAMA = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
ENCODER = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"} | {"pad_token_id": 1}
IMAGE = {name: LLAMA[name] for name in list(LLAMA)[1:5]} | {"image_size": 16, "patch_size": 8}
MODELS: list[tuple[str, dict[str, Any], Any]] = [
    ("llama", LLAMA, AutoModelForCausalLM),
    ("qwen2", LLAMA, AutoModelForCausalLM),
    ("gemma3_text", LLAMA | {"head_dim": 16}, AutoModelForCausalLM),
    ("gpt2", {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2}, AutoModelForCausalLM),
    ("bert", ENCODER, AutoModelForSequenceClassification),
    ("roberta", ENCODER, AutoModelForSequenceClassification),
    ("vit", IMAGE, AutoModel),
    ("t5", {"vocab_size": 40, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2}, AutoModelForSeq2SeqLM),
]
TREE = "tree:depth=2,leaf_width=3"


def _model(kind: str = "llama", options: dict[str, Any] = LLAMA, auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(kind, **options)).eval()


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    _model().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = replace_feedforward(_model(), TREE)
    with torch.no_grad():
        for p in model.parameters():  # no parameter may stand at 0, where a mistake would not show
            p.add_(0.05 * torch.randn_like(p))
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def _load(folder: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> PreTrainedModel:
    return auto.from_pretrained(folder, **options)


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 13).view(2, 5))[0]


def _layers(model: nn.Module) -> list[FeedForwardLayer]:
    return [module for module in model.modules() if isinstance(module, FeedForwardLayer)]


def _same(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("kind", "options", "auto"), MODELS)
def test_saved_and_loaded_twice(kind: str, options: dict[str, Any], auto: Any, tmp_path: Path) -> None:
    model = replace_feedforward(_model(kind, options, auto), TREE)
    record = model.config.quantization_config
    for folder in (tmp_path / "1", tmp_path / "2"):
        model.save_pretrained(folder)
        loaded = _load(folder, auto)
        assert type(loaded) is type(model)
        assert _same(loaded, model)
        assert loaded.config.quantization_config == record
        assert all(p.requires_grad for layer in _layers(loaded) for p in layer.parameters())
        model = loaded
    assert (tmp_path / "1" / "config.json").read_text() == (tmp_path / "2" / "config.json").read_text()


@pytest.mark.parametrize("layer", ["ultra:depth=3", "dense:width=5", "moe:experts=3,expert_width=4,top_k=2"])
def test_every_layer_comes_back(layer: str, tmp_path: Path) -> None:
    model = replace_feedforward(_model(), layer, ["model.layers.1.mlp"])
    model.save_pretrained(tmp_path, max_shard_size="10kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert _same(_load(tmp_path), model)


@pytest.mark.parametrize(("kind", "options", "auto"), MODELS)
def test_dense_folder_gets_new_layers(kind: str, options: dict[str, Any], auto: Any, tmp_path: Path) -> None:
    model = _model(kind, options, auto)
    model.save_pretrained(tmp_path / "dense")
    config = FeedForwardConfig(TREE)
    torch.manual_seed(5)
    loaded = _load(tmp_path / "dense", auto, quantization_config=config)
    assert config == FeedForwardConfig(TREE)
    state, old = loaded.state_dict(), model.state_dict()
    assert all(torch.equal(state[name], old[name]) for name in state.keys() & old.keys())
    layers = _layers(loaded)
    assert layers
    assert len(state.keys() - old.keys()) == len(layers) * len(list(layers[0].parameters()))
    for layer in layers:
        assert isinstance(layer, TreeFeedForward)
        assert not layer.training
        assert layer.leaf_w1.eq(0).all()  # an offset, as reset_parameters starts it; everything else is random
        for p in (layer.node_weight, layer.node_out, layer.base_w1, layer.base_w2):
            assert 0.05 < p.std() < 0.5
            assert p.abs().max() <= 1 / (3 + 2) ** 0.5
    assert not torch.equal(*(layer.node_weight for layer in layers[:2]))
    loaded.save_pretrained(tmp_path / "replaced")
    assert _same(_load(tmp_path / "replaced", auto), loaded)


def test_loaded_model_is_as_any_other(saved: Path) -> None:
    model = _load(saved)
    assert not any(hasattr(model, name) for name in ("hf_quantizer", "quantization_method", "is_quantized"))
    assert not hasattr(model.config, "_is_quantized")
    assert not model._keys_to_ignore_on_load_missing
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert {p.dtype for p in model.to(dtype).parameters()} == {dtype}
    assert {p.dtype for p in model.half().float().parameters()} == {torch.float32}


@pytest.mark.parametrize("device_map", [None, "auto", {"": "cpu"}])
def test_dtype_and_device_map(device_map: Any, saved: Path, dense: Path) -> None:
    for folder, options in ((saved, {}), (dense, {"quantization_config": FeedForwardConfig(TREE)})):
        model = _load(folder, dtype=torch.bfloat16, device_map=device_map, **options)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert all(layer.node_weight.std() > 0.05 for layer in _layers(model))  # type: ignore[operator,union-attr]
        assert _logits(model).isfinite().all()
    exact = _load(saved)
    assert torch.equal(_load(saved, dtype="bfloat16").lm_head.weight, exact.lm_head.weight.bfloat16())


def test_offloading_is_refused(saved: Path, tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    with pytest.raises(ValueError, match=r"'model.layers.1.mlp' was offloaded"):
        _load(saved, device_map=places, offload_folder=tmp_path / "offload")


def test_parts_of_a_model(saved: Path, tmp_path: Path) -> None:
    whole = _load(saved)
    part = _load(saved, AutoModel)
    assert _same(part, whole.model)
    part.save_pretrained(tmp_path / "part")
    again = _load(tmp_path / "part", AutoModelForSequenceClassification)
    assert _same(again.model, whole.model)
    t5 = replace_feedforward(_model(*MODELS[-1]), TREE)
    t5.save_pretrained(tmp_path / "t5")
    encoder = T5EncoderModel.from_pretrained(tmp_path / "t5")
    assert _same(encoder.encoder, t5.encoder)


@pytest.mark.parametrize("standardise", [False, True])
def test_merged_base(standardise: bool, saved: Path, tmp_path: Path) -> None:
    model = replace_feedforward(_model(), f"{TREE},standardise=true") if standardise else _load(saved)
    _logits(model.train())  # takes a batch in
    model.eval()
    before = _logits(model)
    fastff.merge_base(model)
    model.save_pretrained(tmp_path / "1")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "1", output_loading_info=True)
    assert not report["missing_keys"]
    assert _same(loaded, model)
    assert all(layer.merged for layer in _layers(loaded))  # type: ignore[attr-defined]
    assert torch.allclose(_logits(loaded), before, atol=1e-5)
    loaded.save_pretrained(tmp_path / "2")
    assert _same(_load(tmp_path / "2"), model)


def test_from_config_needs_the_call(saved: Path) -> None:
    config = AutoConfig.from_pretrained(saved)
    model = AutoModelForCausalLM.from_config(config)
    assert not _layers(model)
    record = config.quantization_config
    replace_feedforward(model, record["layer"], record["modules"])
    assert model.state_dict().keys() == _load(saved).state_dict().keys()


def test_a_dense_model_that_says_otherwise_is_refused(saved: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(saved)).save_pretrained(tmp_path / "wrong")
    with pytest.raises(ValueError, match=r"must hold all weights of 'model.layers.0.mlp', they lack base_b1"):
        _load(tmp_path / "wrong")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer": "__import__"}, ValueError, "layer must be one of dense"),
        ({"layer": "tree:depth=2,leaf_width=__import__"}, TypeError, "leaf_width must be an int"),
        ({"layer": "tree:depth=60,leaf_width=1"}, ValueError, "depth of at most 32.*depth=60"),
        ({"layer": f"tree:depth={10**15},leaf_width=1"}, ValueError, "depth of at most 32"),
        ({"layer": "tree:depth=30,leaf_width=1,activation=silu"}, ValueError, "parameters, more than the .* bytes"),
        (
            {"layer": "tree:depth=2,leaf_width=2,activation=silu"},
            (RuntimeError, ValueError),
            "ignore_mismatched_sizes|in the shape",
        ),
        ({"layer": "ultra:depth=1,activation=silu"}, ValueError, "must hold all weights"),
        ({"modules": ["model.layers.7.mlp"]}, ValueError, r"modules must match.*got \['model.layers.7.mlp'\]"),
        ({"modules": "model"}, TypeError, "modules must be None or a list"),
        ({"code": "print()"}, TypeError, "unexpected keyword argument 'code'"),
    ],
)
def test_wrong_files(changes: dict[str, Any], error: Any, message: str, saved: Path) -> None:
    _edit(saved, **changes)
    with pytest.raises(error, match=message):
        _load(saved)


def test_damaged_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model.safetensors must be a safetensors file, it is damaged"):
        _load(saved)


def test_wrong_shapes_are_refused_even_where_transformers_would_not(saved: Path) -> None:
    _edit(saved, layer="tree:depth=2,leaf_width=2,activation=silu")
    with pytest.raises(ValueError, match=r"'model.layers.0.mlp', they lack base_b1|in the shape"):
        _load(saved, ignore_mismatched_sizes=True)


def test_registered_again() -> None:
    importlib.reload(fastff.hf.replace.quantizer)


class _Texts(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(6) + index) % 37 + 3
        return {"input_ids": ids, "labels": ids}


def test_trainer(saved: Path, tmp_path: Path) -> None:
    model = _load(saved)
    before = [layer.node_weight.clone() for layer in _layers(model)]  # type: ignore[operator,union-attr]
    arguments = TrainingArguments(
        tmp_path / "runs",
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(model, arguments, train_dataset=_Texts()).train()
    assert all(not torch.equal(a, b.node_weight) for a, b in zip(before, _layers(model), strict=True))
    assert _same(_load(tmp_path / "runs" / "checkpoint-2"), model)


def test_compile(saved: Path) -> None:
    model = _load(saved)
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.allclose(_logits(compiled), _logits(model), atol=1e-5)
