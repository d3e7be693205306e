"""Fine-tuning from end to end: what is learnt, summarised, resumed and refused."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fastff.hf as hf
from fastff.hf.finetune import FinetuneConfig, Interrupted, finetune
from fastff.hf.finetune import run as run_module
from fastff.hf.finetune.log import FinetuneLog
from fastff.hf.finetune.tuning import Tuning
from fastff.hf.text import train_tokenizer
from fastff.runs.files import lock_folder

TREE = "tree:depth=2,leaf_width=2"
WORDS = ["the", "film", "was", "really", "slow", "and", "long", "plot", "actor", "music"]
CLASSES = ("bad", "good")


def texts(rows: int, seed: int) -> tuple[list[str], list[int]]:
    """Sentences of different lengths that say their class."""
    generator = torch.Generator().manual_seed(seed)
    sentences, labels = [], []
    for i in range(rows):
        words = [WORDS[k] for k in torch.randint(len(WORDS), (3 + i % 5,), generator=generator)]
        words.insert(i % 3, CLASSES[i % 2])
        sentences.append(" ".join(words))
        labels.append(i % 2)
    return sentences, labels


def write_model(folder: Path, feedforward: str) -> str:
    """A random UltraFastBERT, as pretraining would leave it."""
    torch.manual_seed(0)
    config = hf.UltraFastBertConfig(
        vocab_size=80,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        feedforward=feedforward,
        max_position_embeddings=32,
        classifier_pooling="mean",
        classifier_hidden_size=16,
    )
    hf.UltraFastBertForMaskedLM(config).save_pretrained(folder)
    train_tokenizer(texts(200, 0)[0], 80, "wordpiece").save_pretrained(folder)
    return str(folder)


def settings(data: str, **changes: Any) -> FinetuneConfig:
    values: dict[str, Any] = {"data": data, "length": 16, "epochs": 2, "batch_size": 8, "lr": 1e-2, "seeds": 1}
    return FinetuneConfig(**(values | changes))


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    for seed, (split, rows) in enumerate((("train", 52), ("validation", 20))):
        sentences, labels = texts(rows, seed)
        table = datasets.Dataset.from_dict({"sentence": sentences, "label": labels, "idx": list(range(rows))})
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [write_model(folder / "dense", "dense:width=16"), write_model(folder / "tree", TREE)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: str, models: list[str]) -> tuple[dict[str, Any], Path]:
    """A comparison over two seeds that was never interrupted."""
    out = tmp_path_factory.mktemp("finished") / "out"
    config = settings(data, seeds=2, epochs=6, balance=0.01)
    return finetune(models, config, out, save_models=True, quiet=True), out


def test_models_learn_and_are_summarised_side_by_side(finished: tuple[dict[str, Any], Path], models: list[str]) -> None:
    summary, out = finished
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["samples"] == {"train": 52, "validation": 20}
    assert summary["classes"] == ["0", "1"]
    assert [row["label"] for row in summary["models"]] == ["dense", "tree"]
    for row, place in zip(summary["models"], models, strict=True):
        runs = [json.loads((out / "runs" / f"{row['label']}-seed{k}.json").read_text()) for k in range(2)]
        assert all(run["model"] == row["model"] == place for run in runs)
        assert all(len(run["epochs"]) == 6 for run in runs)
        a, b = (run["accuracy"] for run in runs)
        assert row["accuracy"] == {"mean": (a + b) / 2, "error": pytest.approx(abs(a - b) / 2), "values": [a, b]}
        assert row["accuracy"]["mean"] > 85
        assert runs[0]["loss"] != runs[1]["loss"]
        assert [run["loss"] for run in runs] == [run["epochs"][-1]["validation_loss"] for run in runs]
        assert all(run["epochs"][-1]["loss"] < 0.5 * run["epochs"][0]["loss"] for run in runs)
        assert row["training_seconds"]["mean"] > 0
        assert row["inference_seconds"].keys() == {"1", "32"}
        assert row["inference_seconds"]["1"] > row["inference_seconds"]["32"] > 0
    dense, tree = summary["models"]
    assert dense["accuracy_kept"] == 1
    assert tree["accuracy_kept"] == tree["accuracy"]["mean"] / dense["accuracy"]["mean"]
    (layer,) = tree["feedforward"]
    assert layer["name"].startswith("model.")
    assert (layer["layer"], layer["training_width"], layer["inference_width"]) == ("TreeFeedForward", 11, 4)
    assert tree["architecture"] == "ultrafastbert"
    assert tree["pretraining_loss"] is None
    assert not any((out / "checkpoints").iterdir())


def test_a_saved_model_is_the_one_of_the_last_epoch(
    finished: tuple[dict[str, Any], Path], data: str, models: list[str], tmp_path: Path
) -> None:
    place = finished[1] / "models" / "tree-seed1"
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    rows = datasets.load_dataset("parquet", data_dir=data)["validation"]
    encoded = AutoTokenizer.from_pretrained(place)(rows["sentence"][:], padding=True, return_tensors="pt")
    right = [p == label for p, label in zip(model(**encoded).logits.argmax(-1).tolist(), rows["label"], strict=True)]
    assert 100 * sum(right) / len(right) == finished[0]["models"][1]["accuracy"]["values"][1]


def test_a_finished_comparison_is_returned_as_it_is(
    finished: tuple[dict[str, Any], Path], data: str, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "Tuning", None)
    config = settings(data, seeds=2, epochs=6, balance=0.01)
    assert finetune(models, config, finished[1], quiet=True) == finished[0]


def _weights(out: Path, name: str) -> dict[str, Any]:
    return load_file(out / "models" / name / "model.safetensors")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def test_an_interrupted_and_a_killed_run_go_on_to_the_same_bits(
    data: str, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole, parts = settings(data, epochs=3), tmp_path / "whole", tmp_path / "parts"
    finetune(models[1:], config, whole, save_models=True, quiet=True)
    steps: list[int] = []
    seconds: list[float] = []
    real = FinetuneLog.step

    def stop(at: int, how: Any) -> None:
        def step(self: FinetuneLog, step: int, *rest: Any) -> None:
            steps.append(step)
            if step == at:
                how()
            real(self, step, *rest)

        monkeypatch.setattr(FinetuneLog, "step", step)

    def die() -> None:
        raise RuntimeError("killed")

    checkpoints = parts / "checkpoints" / "tree-seed0"
    for at, how, error, left in (
        (3, lambda: os.kill(os.getpid(), signal.SIGINT), Interrupted, {"checkpoint-3"}),
        (9, die, RuntimeError, {"checkpoint-3", "checkpoint-7"}),
        (14, lambda: os.kill(os.getpid(), signal.SIGTERM), Interrupted, {"checkpoint-7", "checkpoint-14"}),
    ):
        stop(at, how)
        with pytest.raises(error):
            finetune(models[1:], config, parts, save_models=True, quiet=True)
        assert {path.name for path in checkpoints.iterdir()} == left
        seconds.append(json.loads((max(checkpoints.iterdir(), key=_step) / "progress.json").read_text())["seconds"])
        (checkpoints / "checkpoint-15").mkdir()  # what a killed process had begun to write
    stop(0, die)
    finetune(models[1:], config, parts, save_models=True, quiet=True)
    assert steps == [1, 2, 3, *range(4, 10), *range(8, 15), *range(15, 22)]
    expected = _weights(whole, "tree-seed0")
    found = _weights(parts, "tree-seed0")
    assert all(found[name].equal(value) for name, value in expected.items())
    results = [json.loads((out / "runs/tree-seed0.json").read_text()) for out in (whole, parts)]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < results[1].pop("training_seconds")
    assert results[0].pop("training_seconds") > 0
    assert results[0] == results[1]


def test_a_run_killed_after_its_last_checkpoint_is_not_trained_again(
    data: str, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, write = settings(data), run_module.write_json
    monkeypatch.setattr("fastff.hf.finetune.tuning.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finetune(models[:1], config, tmp_path, quiet=True)
    monkeypatch.setattr("fastff.hf.finetune.tuning.write_json", write)
    monkeypatch.setattr(FinetuneLog, "step", lambda *_: 1 / 0)
    assert finetune(models[:1], config, tmp_path, quiet=True)["models"][0]["accuracy"]["mean"] > 0


def test_models_and_seeds_are_added_without_repeating_runs(
    data: str, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, real = [], Tuning.train

    def train(self: Tuning, candidate: Any, seed: int, *rest: Any) -> None:
        trained.append((candidate.label, seed))
        real(self, candidate, seed, *rest)

    monkeypatch.setattr(Tuning, "train", train)
    finetune(models[:1], settings(data, epochs=1), tmp_path, quiet=True)
    summary = finetune(models, settings(data, epochs=1, seeds=2), tmp_path, quiet=True)
    assert trained == [("dense", 0), ("tree", 0), ("dense", 1), ("tree", 1)]
    assert [len(row["accuracy"]["values"]) for row in summary["models"]] == [2, 2]
    assert not (tmp_path / "models").exists()
    with pytest.raises(ValueError, match=r"other settings: lr=0.01 \(now 0.1\)"):
        finetune(models, settings(data, epochs=1, seeds=2, lr=0.1), tmp_path, quiet=True)
    other = write_model(tmp_path / "elsewhere" / "tree", TREE)
    with pytest.raises(ValueError, match="tree-seed0.json is of the model .*, got .*elsewhere/tree"):
        finetune([other], settings(data, epochs=1), tmp_path, quiet=True)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="holds runs but no config.json"):
        finetune(models, settings(data, epochs=1), tmp_path, quiet=True)


def test_two_processes_do_not_share_a_folder(data: str, models: list[str], tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(ValueError, match="in use by another process"):
        finetune(models, settings(data), tmp_path, quiet=True)


def test_what_cannot_run_leaves_nothing_behind(data: str, models: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="no such folder"):
        finetune([models[0], str(tmp_path / "missing")], settings(data), out)
    with pytest.raises(ValueError, match="length must be at most 32, what model 'dense' can read, got 33"):
        finetune(models, settings(data, length=33), out)
    assert not out.exists()


def test_divergence_ends_the_run_and_names_the_learning_rate(data: str, models: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"diverged at step \d+: the loss is no number; lower lr \(1e\+30\)"):
        finetune(models[:1], settings(data, lr=1e30, warmup=0.0), tmp_path, quiet=True)
