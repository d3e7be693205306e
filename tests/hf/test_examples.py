"""The scripts of examples/, run as a user would, on little."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastff.hf.text import train_tokenizer
from fastff.nn import build_layer

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested_and_short() -> None:
    tested = {"compare_decoders.py", "fill_mask.py", "swap_llama.py", "train_decoder.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested
    assert all(len(path.read_text().splitlines()) < 60 for path in EXAMPLES.glob("*.py"))


def test_fill_mask(crammed: Any, tmp_path: Path) -> None:
    folder = crammed.write(tmp_path, crammed.weights(), crammed.arch())
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, 50, "wordpiece")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    special = {"mask_token": "[MASK]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | special))
    out = run("fill_mask.py", "the [MASK] sat", "--model", folder)
    assert "2 layers, 8 of 30 neurons run for a token" in out
    assert out.count("%  the") + out.count("%  ") >= 5


def test_swap_llama() -> None:
    out = run("swap_llama.py", "--hidden", "64", "--layer", "tree:depth=3,leaf_width=2")
    assert "found model.layers.0.mlp, model.layers.1.mlp" in out
    assert "saved, loaded: the same logits: True" in out


@pytest.mark.slow
def test_train_decoder(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"It was the night number {n}, and the wind was cold." for n in range(20_000)))
    out = run(
        "train_decoder.py",
        text,
        "It was the night",
        *("--out", tmp_path / "run", "--tokens", "60000", "--shape", "hidden_size=32,num_hidden_layers=2"),
        *("--layer", "tree:depth=3,leaf_width=1,gradient=chosen"),
    )
    assert "validation loss" in out
    assert "\nIt was the night" in out


@pytest.mark.slow
def test_compare_decoders(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"It was the night number {n}, and the wind was cold." for n in range(20_000)))
    every = runpy.run_path(str(EXAMPLES / "compare_decoders.py"))["LAYERS"]
    assert all(build_layer(layer, 128, device="meta") for layer in every)
    assert len(set(every)) == 25
    layers = list({layer.split(":")[0]: layer for layer in every}.values())  # the last of each kind
    assert len(layers) == 5
    arguments = (text, "--out", tmp_path / "out", "--tokens", "20000", "--seeds", "0", "3", "--layers", *layers)
    out = run("compare_decoders.py", *arguments)
    shown = [line.split()[0] for line in out.splitlines() if " validation loss " in line and line[:4] != "step"]
    runs = json.loads((tmp_path / "out" / "decoders.json").read_text())["runs"]
    assert [(r["seed"], r["layer"]) for r in runs] == [(seed, layer) for seed in (0, 3) for layer in layers]
    assert sorted(shown) == sorted(2 * layers)
    assert all(r["curve"][-1]["validation_loss"] == r["validation_loss"] for r in runs)
    assert run("compare_decoders.py", *arguments)  # finished: shown again
