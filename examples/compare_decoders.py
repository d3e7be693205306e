"""Train small decoders that differ in their feedforward layers alone, one after the other, and put them side by side.

python examples/compare_decoders.py novels.txt --out runs/decoders --tokens 4000000   # goes on where it was stopped
"""

import argparse
import itertools
import json
import re
from pathlib import Path

from fastff.hf.pretrain import PretrainConfig, losses_by_precision, pretrain
from fastff.runs.files import write_json

TREES = ((8, 6), (5, 10), (8, 9), (8, 11), (8, 13), (24, 7))  # how many, of which depth
CHEAP = "rank=64,contributing=false,leaf_bias=false"  # few rows a token
MANY = ((16, "128,standardise=true"), (32, "128"))  # of depth 9, and dense neurons beside
PEERS = ((10, ""), (4, "rank=64,master_width=128,"), (10, "rank=64,master_width=64,"))  # experts a head, what is cheap
LAYERS = [
    *(f"tree:depth={depth},leaf_width=1,trees={trees}" for trees, depth in TREES),
    *(f"tree:depth=0,leaf_width={width}" for width in (56, 192)),  # two-sided neurons, no tree
    *(f"tree:depth={depth},leaf_width=1,trees=16,{CHEAP},master_width=64" for depth in (9, 11)),
    *(f"tree:depth=9,leaf_width=1,trees={k},{CHEAP},master_width={more}" for k, more in MANY),
    *(f"peer:experts=8281,heads=8,top_k={k},key_features=32,{more}activation=gelu" for k, more in PEERS),
    *(f"dense:width={width},activation=gelu" for width in (6120, 1016, 512, 256, 128, 56, 1)),  # 1: as good as none
    "ultra:depth=6,trees=8",
    *(f"moe:experts=24,expert_width=16,activation=gelu{more}" for more in ("", ",noise=false")),
]
MODEL = {"objective": "causal", "model": "llama", "vocab_size": 2048, "clip": 1.0, "weight_decay": 0.1}
STEPS = {"start_batch": 32, "end_batch": 32, "schedule": "cosine"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="text to learn from")
    parser.add_argument("--out", type=Path, default=Path("runs/decoders"))
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--shape", default="hidden_size=128,num_hidden_layers=3,num_attention_heads=4")
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-3], help="each of them for every layer")
    parser.add_argument("--grow", type=float, help="share of steps in which trees grow")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--layers", nargs="+", default=LAYERS, help="by default all of docs/results/decoders.md")
    given = parser.parse_args()
    found = {"tokens": given.tokens, "layers": int(re.findall(r"layers=(\d+)", given.shape)[0]), "runs": []}
    shared = {name: getattr(given, name) for name in ("data", "shape", "tokens", "grow")}
    for seed, lr, layer in itertools.product(given.seeds, given.lr, given.layers):
        config = PretrainConfig(seed=seed, lr=lr, feedforward=layer, **shared, **MODEL, **STEPS)
        folder = given.out / f"{re.sub(r'[^a-z0-9]+', '-', layer)}_lr{lr:g}_seed{seed}"
        result = pretrain(config, folder, resume=True) | {"precisions": losses_by_precision(config, folder)}
        metrics = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        curve = [{k: r[k] for k in ("tokens", "seconds", "validation_loss")} for r in metrics if "validation_loss" in r]
        found["runs"].append({"layer": layer, "seed": seed, "lr": lr, "grow": config.growth, **result, "curve": curve})
        write_json(given.out / "decoders.json", found)
    for r in sorted(found["runs"], key=lambda r: r["validation_loss"]):
        print("{layer:60} seed {seed}, {lr:g}: validation loss {validation_loss:.4f}, {seconds:.0f} s".format_map(r))


if __name__ == "__main__":
    main()
