"""Train small decoders that differ in their feedforward layers alone, one after the other, and put them side by side.

python examples/compare_decoders.py novels.txt --out runs/decoders --tokens 4000000   # goes on where it was stopped
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from fastff.files import write_json
from fastff.hf.pretrain import PretrainConfig, pretrain

LAYERS = {  # by the names of their folders
    "tree-8-x-d6-l1": "tree:depth=6,leaf_width=1,trees=8",
    "tree-8-x-d9-l1": "tree:depth=9,leaf_width=1,trees=8",
    "tree-24-x-d7-l1": "tree:depth=7,leaf_width=1,trees=24",
    "dense-6-120": "dense:width=6120,activation=gelu",
    "dense-1-016": "dense:width=1016,activation=gelu",
    "dense-256": "dense:width=256,activation=gelu",
    "dense-192--two-sided": "tree:depth=0,leaf_width=192",  # what 24 trees of depth 7 begin as
    "dense-56--two-sided": "tree:depth=0,leaf_width=56",
    "dense-56": "dense:width=56,activation=gelu",
    "dense-1": "dense:width=1,activation=gelu",  # as good as no feedforward layer
    "ultrafff-8-x-6": "ultra:depth=6,trees=8",
    "moe-24-x-16--top-2": "moe:experts=24,expert_width=16,activation=gelu",
    "moe--no-noise": "moe:experts=24,expert_width=16,activation=gelu,noise=false",
}
MODEL: dict[str, Any] = {"objective": "causal", "model": "llama", "vocab_size": 2048, "clip": 1.0}
STEPS: dict[str, Any] = {"start_batch": 32, "end_batch": 32, "schedule": "cosine", "weight_decay": 0.1}
SETTINGS = {**MODEL, **STEPS, "shape": "hidden_size=128,num_hidden_layers=3,num_attention_heads=4"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="text to learn from")
    parser.add_argument("--out", type=Path, default=Path("runs/decoders"))
    for name, default in {"tokens": 4_000_000, "lr": 3e-3, "seeds": 1}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--only", nargs="+", choices=LAYERS, default=list(LAYERS))
    given = parser.parse_args()
    found: dict[str, Any] = {"tokens": given.tokens, "lr": given.lr, "layers": 3, "runs": []}
    for seed, name in itertools.product(range(given.seeds), given.only):
        own = {"seed": seed, "feedforward": LAYERS[name], "balance": 0.0 if name.startswith("ultra") else 0.01}
        config = PretrainConfig(data=given.data, tokens=given.tokens, lr=given.lr, **own, **SETTINGS)
        folder = given.out / f"{name}_{seed}"
        result = pretrain(config, folder, resume=True)
        metrics = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        shown = ("tokens", "seconds", "validation_loss")
        curve = [{name: row[name] for name in shown} for row in metrics if "validation_loss" in row]
        found["runs"].append({"title": name, "layer": LAYERS[name], "seed": seed, **result, "curve": curve})
        write_json(given.out / "decoders.json", found)
    for run in sorted(found["runs"], key=lambda run: run["validation_loss"]):
        print(f"{run['title']:20} validation loss {run['validation_loss']:.4f}, {run['seconds']:.0f} s")


if __name__ == "__main__":
    main()
