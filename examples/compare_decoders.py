"""Train small decoders that differ in their feedforward layers alone, one after the other, and put them side by side.

python examples/compare_decoders.py novels.txt --out runs/decoders --tokens 4000000   # goes on where it was stopped
"""

import argparse
import itertools
import json
import re
from pathlib import Path
from typing import Any

from fastff.hf.pretrain import PretrainConfig, losses_by_precision, pretrain
from fastff.runs.files import write_json

TREES = ((8, 6), (5, 10), (8, 9), (8, 11), (8, 13), (24, 7))  # how many, of which depth
CHEAP = "rank=64,contributing=false,leaf_bias=false"  # few rows a token
LAYERS = [
    *(f"tree:depth={depth},leaf_width=1,trees={trees}" for trees, depth in TREES),
    *(f"tree:depth=0,leaf_width={width}" for width in (56, 192)),  # two-sided neurons, no tree
    *(f"tree:depth={depth},leaf_width=1,trees=16,{CHEAP},master_width=64" for depth in (9, 11)),
    f"tree:depth=9,leaf_width=1,trees=32,{CHEAP},master_width=128",
    "peer:experts=8281,heads=8,top_k=10,key_features=32,activation=gelu",
    *(
        f"peer:experts=8281,heads=8,top_k={top_k},key_features=32,rank=64,master_width={width},activation=gelu"
        for top_k, width in ((4, 128), (10, 64))
    ),
    *(f"dense:width={width},activation=gelu" for width in (6120, 1016, 512, 256, 128, 56, 1)),  # 1: as good as none
    "ultra:depth=6,trees=8",
    *(f"moe:experts=24,expert_width=16,activation=gelu{more}" for more in ("", ",noise=false")),
]
MODEL: dict[str, Any] = {"objective": "causal", "model": "llama", "vocab_size": 2048, "clip": 1.0}
STEPS: dict[str, Any] = {"start_batch": 32, "end_batch": 32, "schedule": "cosine", "weight_decay": 0.1}
SETTINGS = {**MODEL, **STEPS}
SHAPE = "hidden_size=128,num_hidden_layers=3,num_attention_heads=4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="text to learn from")
    parser.add_argument("--out", type=Path, default=Path("runs/decoders"))
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--shape", default=SHAPE, help="of the models")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--grow", type=float, default=PretrainConfig.grow, help="share of steps in which trees grow")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--layers", nargs="+", default=LAYERS, help="by default all of docs/results/decoders.md")
    given = parser.parse_args()
    depth = int(re.findall(r"num_hidden_layers=(\d+)", given.shape)[0])
    found: dict[str, Any] = {"tokens": given.tokens, "lr": given.lr, "layers": depth, "runs": []}
    for seed, layer in itertools.product(given.seeds, given.layers):
        own = {"seed": seed, "feedforward": layer, "balance": 0.0 if layer.startswith("ultra") else 0.01}
        kept = {name: getattr(given, name) for name in ("data", "shape", "tokens", "lr", "grow")}
        config = PretrainConfig(**kept, **own, **SETTINGS)
        folder = given.out / f"{re.sub(r'[^a-z0-9]+', '-', layer)}_seed{seed}"
        result = pretrain(config, folder, resume=True) | {"precisions": losses_by_precision(config, folder)}
        metrics = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        shown = ("tokens", "seconds", "validation_loss")
        curve = [{name: row[name] for name in shown} for row in metrics if "validation_loss" in row]
        found["runs"].append({"layer": layer, "seed": seed, "grow": given.grow, **result, "curve": curve})
        write_json(given.out / "decoders.json", found)
    for run in sorted(found["runs"], key=lambda run: run["validation_loss"]):
        loss, seconds = run["validation_loss"], run["seconds"]
        print(f"{run['layer']:60} seed {run['seed']}: validation loss {loss:.4f}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
