"""The authors' released format: read as it is, and refused where it is not what it says."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, pipeline

from fastff import hf
from fastff.hf.text import train_tokenizer

REFERENCE = Path(__file__).parents[3] / "shared/data/reference/ultrafastbert_2x3"


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="shared/data/reference/ultrafastbert_2x3 is not there")
@pytest.mark.parametrize("auto", [False, True])
def test_their_model_gives_their_logits(auto: bool) -> None:
    model = (AutoModelForMaskedLM if auto else hf.UltraFastBertForMaskedLM).from_pretrained(REFERENCE)
    expected = load_file(REFERENCE / "expected.safetensors")
    assert not model.training
    torch.testing.assert_close(model(expected["input_ids"]).logits, expected["logits"], rtol=1e-5, atol=1e-6)
    assert AutoConfig.from_pretrained(REFERENCE).feedforward == "ultra:depth=3,trees=2"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_read_and_saved_as_ours(crammed: Any, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForMaskedLM.from_pretrained(
        crammed.write(tmp_path / "theirs", crammed.weights(), crammed.arch(), file)
    )
    model.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "ultrafastbert"
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    ids = torch.randint(0, 50, (2, 7))
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert "crammedBERT" not in caplog.text  # no warning of another model type
    tree, theirs = model.model.layers[1].feedforward, crammed.weights()
    assert torch.equal(tree.w_in[1, 4], theirs["encoder.layers.1.ffn.linear_in.weight"][15 + 4])
    assert torch.equal(tree.b_in[1, 4], theirs["encoder.layers.1.ffn.linear_in.bias"][15 + 4])
    assert torch.equal(tree.w_out[1, 4], theirs["encoder.layers.1.ffn.linear_out.weight"][:, 15 + 4])


def test_a_file_may_hold_only_the_decoder_of_the_tied_pair(crammed: Any, tmp_path: Path) -> None:
    both = hf.UltraFastBertForMaskedLM.from_pretrained(
        crammed.write(tmp_path / "both", crammed.weights(), crammed.arch())
    )
    one = crammed.weights()
    del one["encoder.embedding.word_embedding.weight"]
    only = hf.UltraFastBertForMaskedLM.from_pretrained(crammed.write(tmp_path / "one", one, crammed.arch()))
    ids = torch.randint(0, 50, (2, 7))
    assert torch.equal(only(ids).logits, both(ids).logits)


def test_their_dense_baseline_has_no_biases(crammed: Any, tmp_path: Path) -> None:
    dense = crammed.arch(intermed_type="dense", intermed_size=30, intermed_depth=None)
    layer = hf.UltraFastBertForMaskedLM.from_pretrained(
        crammed.write(tmp_path, crammed.weights("dense"), dense)
    ).model.layers[0]
    x, theirs = torch.randn(5, 16), crammed.weights("dense")
    hidden = torch.nn.functional.gelu(x @ theirs["encoder.layers.0.ffn.dense_in.weight"].T)
    expected = hidden @ theirs["encoder.layers.0.ffn.dense_out.weight"].T
    torch.testing.assert_close(layer.feedforward(x), expected)


@pytest.mark.parametrize("cls", [hf.UltraFastBertModel, hf.UltraFastBertForSequenceClassification])
def test_other_heads_take_the_encoder(crammed: Any, cls: Any, tmp_path: Path) -> None:
    folder = crammed.write(tmp_path, crammed.weights(), crammed.arch())
    model = cls.from_pretrained(folder, **({"num_labels": 3} if cls is not hf.UltraFastBertModel else {}))
    base, ids = getattr(model, "model", model), torch.randint(0, 50, (2, 7))
    expected = hf.UltraFastBertForMaskedLM.from_pretrained(folder).model
    assert torch.equal(base(ids).last_hidden_state, expected(ids).last_hidden_state)
    if cls is not hf.UltraFastBertModel:
        assert model(ids).logits.shape == (2, 3)


def test_tokenizer_and_pipeline(crammed: Any, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, 50, "wordpiece")
    crammed.write(tmp_path, crammed.weights(), crammed.arch())
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    special = {"mask_token": "[MASK]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128} | special)
    )
    assert AutoTokenizer.from_pretrained(tmp_path)("the cat").input_ids == tokenizer("the cat").input_ids
    assert len(pipeline("fill-mask", model=str(tmp_path), top_k=3)("the [MASK] sat")) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm_scheme": "post"}, "arch.norm_scheme: 'post'; UltraFastBERT has 'pre'"),
        ({"nonlin": "GELUglu"}, "arch.nonlin"),
        ({"use_bias": True}, "arch.use_bias"),
        ({"attention": {"rotary_embedding": True}}, "arch.attention.rotary_embedding: True"),
        ({"hidden_size": 32}, "arch.embedding.embedding_dim: 16; expected hidden_size, 32"),
        ({"intermed_depth": "3); print(1"}, "depth must be an int"),
        ({"intermed_depth": 60}, "depth of at most 32"),
        ({"intermed_depth": 20}, "config.json says (2, 2097151)"),
        ({"intermed_size": 4}, "config.json says (4, 15)"),
        ({"num_transformer_layers": 3}, "lack"),
        ({"num_transformer_layers": 1}, "layers.1"),
        ({"num_transformer_layers": None}, "must have the setting arch.num_transformer_layers"),
    ],
)
def test_another_architecture_is_refused(crammed: Any, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = crammed.write(tmp_path, crammed.weights(), crammed.arch(**values))
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        hf.UltraFastBertForMaskedLM.from_pretrained(folder)


def test_a_configuration_without_arch_is_refused(crammed: Any, tmp_path: Path) -> None:
    folder = crammed.write(tmp_path, crammed.weights(), "none")
    with pytest.raises(ValueError, match="must have a dictionary 'arch', got str"):
        AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.layers.0.ffn.linear_in.weight", torch.ones(28, 16), "feedforward.w_in"),
        ("encoder.layers.0.ffn.linear_out.weight", torch.ones(30, 16), "feedforward.w_out"),
        ("encoder.layers.0.ffn.linear_in.bias", torch.ones(30, 1), "feedforward.b_in"),
        ("encoder.layers.0.attn.dense.weight", torch.ones(16, 15), "attention.dense"),
        (
            "encoder.layers.0.attn.self_attention.norm_factor",
            torch.tensor(1.0),
            "must be 1 / sqrt(head size) = 0.5, got 1",
        ),
        ("encoder.layers.0.attn.dense.bias", torch.ones(16), "attention.dense.bias"),
        ("something.else", torch.ones(1), "an entry 'something.else'"),
        ("encoder.final_norm.weight", None, "lack"),
    ],
)
def test_other_weights_are_refused(
    crammed: Any, name: str, value: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    tensors = crammed.weights()
    del tensors["encoder.final_norm.weight" if value is None else "encoder.final_norm.bias"]
    if value is not None:
        tensors = crammed.weights() | {name: value}
    folder = crammed.write(tmp_path, tensors, crammed.arch())
    with pytest.raises(ValueError, match=re.escape(message)):
        hf.UltraFastBertForMaskedLM.from_pretrained(folder)


class _Attack:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (exec, ("import fastff; fastff.attacked = True",))


@pytest.mark.parametrize("content", ["attack", "list", "cut", "empty", "text"])
def test_a_damaged_or_hostile_pickle_is_refused_and_not_run(crammed: Any, content: str, tmp_path: Path) -> None:
    import fastff

    folder = crammed.write(tmp_path, crammed.weights(), crammed.arch(), "pytorch_model.bin")
    path = folder / "pytorch_model.bin"
    if content == "attack":
        path.write_bytes(pickle.dumps(_Attack()))
    elif content == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"cut": path.read_bytes()[:1000], "empty": b"", "text": b"no weights"}[content])
    with pytest.raises(OSError, match=r"pytorch_model\.bin of .* (is damaged|holds more than tensors)"):
        hf.UltraFastBertForMaskedLM.from_pretrained(folder)
    assert not hasattr(fastff, "attacked")


@pytest.mark.parametrize("length", [0, 5, 1000])
def test_a_cut_safetensors_file_is_refused(crammed: Any, length: int, tmp_path: Path) -> None:
    folder = crammed.write(tmp_path, crammed.weights(), crammed.arch())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(OSError, match=r"model\.safetensors of .* is damaged"):
        hf.UltraFastBertForMaskedLM.from_pretrained(folder)


def test_a_folder_without_weights_is_refused(crammed: Any, tmp_path: Path) -> None:
    folder = crammed.write(tmp_path, crammed.weights(), crammed.arch())
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="has no weights"):
        hf.UltraFastBertForMaskedLM.from_pretrained(folder)
