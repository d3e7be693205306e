"""The parts of fine-tuning: models, the recipe, losses, the measurement of speed, the command."""

import json
import threading
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import typer
from rich.console import Console
from torch import nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel
from typer.testing import CliRunner

import fastff
from fastff.hf.finetune import FinetuneConfig, Interrupted, commands, speed
from fastff.hf.finetune.callbacks import Progress
from fastff.hf.finetune.data import Task
from fastff.hf.finetune.models import describe, find_models
from fastff.hf.finetune.table import summary_lines, summary_table
from fastff.hf.finetune.trainer import FinetuneTrainer, training_arguments
from fastff.hf.replace import replace_feedforward
from fastff.hf.text import train_tokenizer

TASK = Task(["text"], ["no", "yes", "maybe"], None, None)
TREE = "tree:depth=2,leaf_width=2"


def write(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    train_tokenizer(["some text"], 40, "wordpiece").save_pretrained(folder)
    return str(folder)


def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForMaskedLM(BertConfig(vocab_size=40, max_position_embeddings=32, hidden_dropout_prob=0.5, **shape))


def config(**changes: Any) -> FinetuneConfig:
    return FinetuneConfig(data="some", length=16, **changes)


def test_a_dense_and_a_replaced_model_of_another_architecture_become_classifiers(tmp_path: Path) -> None:
    dense = write(bert(), tmp_path / "dense")
    tree = write(replace_feedforward(bert(), TREE), tmp_path / "tree")
    candidates = find_models([dense, tree])
    models = [candidate.load(TASK, config(dropout=0.25)) for candidate in candidates]
    for model in models:
        assert model.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
        assert model.config.hidden_dropout_prob == model.config.classifier_dropout == 0.25
        assert model.dropout.p == model.bert.encoder.layer[0].output.dropout.p == 0.25
        assert model.bert.embeddings.word_embeddings.weight.equal(bert().bert.embeddings.word_embeddings.weight)
        assert model.dtype == torch.float32
    facts = [describe(candidate, model) for candidate, model in zip(candidates, models, strict=True)]
    assert facts[0]["architecture"] == "bert"
    assert facts[0]["feedforward"] == []
    assert facts[1]["feedforward"] == [
        {
            "name": f"bert.encoder.layer.{i}.intermediate",
            "layer": "TreeFeedForward",
            "training_width": 11,
            "inference_width": 4,
        }
        for i in range(2)
    ]


def test_labels_are_those_of_folders_also_of_a_run_of_pretraining(tmp_path: Path) -> None:
    for run, loss in (("a", 2.5), ("b", None)):
        (tmp_path / run / "model").mkdir(parents=True)
        (tmp_path / run / "model" / "config.json").write_text("{}")
        if loss:
            (tmp_path / run / "result.json").write_text(json.dumps({"validation_loss": loss}))
    a, b, hub = find_models([str(tmp_path / "a"), str(tmp_path / "b" / "model"), "some/bert"])
    assert (a.label, a.place, a.pretraining_loss) == ("a", str(tmp_path / "a" / "model"), 2.5)
    assert (b.label, b.place, b.pretraining_loss) == ("b", str(tmp_path / "b" / "model"), None)
    assert (hub.label, hub.place) == ("bert", "some/bert")
    with pytest.raises(ValueError, match="different names, got 'a' twice"):
        find_models([str(tmp_path / "a"), "some/a"])
    with pytest.raises(ValueError, match="no such folder"):
        find_models([str(tmp_path / "c")])
    (tmp_path / "a" / "result.json").write_text("[]")
    with pytest.raises(ValueError, match="result.json cannot be read"):
        find_models([str(tmp_path / "a")])


def test_an_encoder_without_its_weights_is_refused(tmp_path: Path) -> None:
    model = bert()
    state = {name: value for name, value in model.state_dict().items() if "layer.1.output" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    (candidate,) = find_models([str(tmp_path)])
    with pytest.raises(ValueError, match="has no weights for 4 parameters, such as 'bert.encoder.layer.1.output."):
        candidate.load(TASK, config())
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ValueError, match="cannot be loaded as a sequence classifier"):
        candidate.load(TASK, config())


def test_what_cannot_pad_or_read_the_length_is_refused(tmp_path: Path) -> None:
    (candidate,) = find_models([write(bert(), tmp_path)])
    assert len(candidate.load_tokenizer(32)) <= 40
    with pytest.raises(ValueError, match="length must be at most 32"):
        candidate.load_tokenizer(33)
    tokenizer = candidate.load_tokenizer(32)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pad token"):
        candidate.load_tokenizer(32)


def trainer(model: PreTrainedModel, settings: FinetuneConfig, folder: Path) -> FinetuneTrainer:
    args = training_arguments(settings, 0, folder)
    return FinetuneTrainer(Progress(), settings.balance, model=model, args=args)


def test_the_recipe_is_that_of_p2(tmp_path: Path) -> None:
    (candidate,) = find_models([write(replace_feedforward(bert(), TREE), tmp_path / "tree")])
    t = trainer(candidate.load(TASK, config()), config(weight_decay=0.5), tmp_path)
    t.create_optimizer_and_scheduler(200)
    groups = t.optimizer.param_groups
    assert isinstance(t.optimizer, torch.optim.AdamW)
    assert all((group["betas"], group["eps"]) == ((0.9, 0.98), 1e-6) for group in groups)
    names = {id(p): name for name, p in t.model.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    biases = {name for name in names.values() if name.endswith(("bias", "_b1", "_b2")) or "LayerNorm" in name}
    assert others == biases
    assert decayed == set(names.values()) - biases
    lrs = []
    for _ in range(200):
        lrs.append(t.lr_scheduler.get_last_lr()[0])
        t.optimizer.step()
        t.lr_scheduler.step()
    assert lrs.index(max(lrs)) == 20
    assert max(lrs) == 4e-5
    assert lrs[10] == pytest.approx(2e-5)
    assert lrs[110] == pytest.approx(2e-5)
    assert lrs[-1] < 1e-8
    assert config().weight_decay == 0
    args = training_arguments(config(), 3, tmp_path)
    assert (args.seed, args.data_seed) == (3, 3000)
    assert (args.num_train_epochs, args.train_batch_size, args.max_grad_norm) == (5, 16, 1.0)


def test_balance_is_trained_but_not_reported(tmp_path: Path) -> None:
    (candidate,) = find_models([write(replace_feedforward(bert(), TREE), tmp_path / "tree")])
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(5, 40, (8, 6)), "labels": torch.arange(8) % 3}
    model = candidate.load(TASK, config(dropout=0.0)).train()
    model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    task = model(**inputs).loss
    (task + fastff.auxiliary_loss(model, balance=0.7, importance=0.7, load=0.7)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    t = trainer(model, config(balance=0.7), tmp_path)
    t.current_gradient_accumulation_steps = 1
    t.create_optimizer_and_scheduler(10)
    reported = t.training_step(model, inputs)
    assert reported.item() == pytest.approx(task.item(), abs=1e-6)
    assert t.progress.loss_sum == reported.item()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)
    model.eval()
    assert t.compute_loss(model, inputs).item() == pytest.approx(model(**inputs).loss.item())


class Recorder(nn.Module):
    def __init__(self, name: str, calls: list[tuple[str, int]]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        assert torch.is_inference_mode_enabled()
        self.calls.append((self.name, len(input_ids)))


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(["some text"], 40, "wordpiece")
    rows = datasets.Dataset.from_dict({"input_ids": [[2, 3]] * 33, "attention_mask": [[1, 1]] * 33, "labels": [0] * 33})
    batches = speed.batches_of(rows, tokenizer, torch.device("cpu"))
    assert [len(batches[1]), len(batches[32])] == [33, 2]
    calls: list[tuple[str, int]] = []
    models: Any = {name: (Recorder(name, calls), batches) for name in "ab"}
    repeats = [990.0, 1.0, 3.0, 5.0, 4.0, 2.0]  # seconds of every measurement
    now = iter([time for seconds in repeats for time in (0.0, seconds) * 4])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    found = speed.inference_seconds(models, threading.Event())
    assert found == {name: pytest.approx({"1": 3000 / 33, "32": 3000 / 33}) for name in "ab"}
    once = [("a", 1)] * 33 + [("b", 1)] * 33 + [("a", 32), ("a", 1), ("b", 32), ("b", 1)]
    assert calls == once * 6
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Interrupted):
        speed.inference_seconds(models, stopped)


def test_settings_are_checked() -> None:
    for changes, message in (
        ({"data": ""}, "data must be named"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": float("inf")}, "lr must be a finite number above 0"),
        ({"balance": -1.0}, "balance must be a finite number of at least 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"text_column": "a,b,c"}, "text_column must name one or two columns, got 'a,b,c'"),
        ({"text_column": ","}, "text_column must name one or two columns"),
    ):
        with pytest.raises(ValueError, match=message):
            FinetuneConfig(**({"data": "some"} | changes))


def row(label: str, **changes: Any) -> dict[str, Any]:
    layer = {"name": "x", "layer": "TreeFeedForward", "training_width": 1000, "inference_width": 4}
    return {
        "label": label,
        "feedforward": [layer, layer],
        "parameters": 12345,
        "pretraining_loss": 2.5,
        "accuracy": {"mean": 90.0, "error": 0.25, "values": [89.75, 90.25]},
        "training_seconds": {"mean": 12.3, "error": None, "values": [12.3]},
        "accuracy_kept": 0.987,
        "inference_seconds": {"1": 1.5, "32": 0.25},
        **changes,
    }


SUMMARY = {
    "settings": {"data": "films", "seeds": 2},
    "samples": {"train": 100, "validation": 50},
    "models": [
        row("dense", feedforward=[], pretraining_loss=None, accuracy_kept=None),
        row("tree [x]", accuracy={"mean": 88.0, "error": None, "values": [88.0]}),
    ],
}


def test_the_table_and_the_lines_say_what_was_found() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary_table(SUMMARY))
    table, lines = capture.get(), "\n".join(summary_lines(SUMMARY))
    for text in (table, lines):
        for part in ("films: 50 validation samples, 2 runs", "dense", "tree [x]", "90.00 ± 0.25", "98.7 %", "12,345"):
            assert part in text
        assert (text.count("±"), text.count("2.5000")) == (1, 1)
    assert "8/2,000" in table
    assert "8 of 2,000 neurons" in lines
    assert "…" not in table


def test_the_command_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def finetune(models: list[str], settings: FinetuneConfig, out: Path, **options: Any) -> dict[str, Any]:
        calls.append((models, settings, out, options))
        return SUMMARY

    monkeypatch.setattr(commands, "finetune", finetune)
    app = typer.Typer()
    app.command()(commands.finetune_command)
    arguments = ["a", "b", "--data", "films", "--seeds", "2", "--limit", "7", "--out", str(tmp_path), "--save-models"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    settings = FinetuneConfig(data="films", seeds=2, limit=7)
    assert calls == [(["a", "b"], settings, tmp_path, {"save_models": True, "quiet": False})]
    assert result.output.splitlines() == [*summary_lines(SUMMARY), f"summary: {tmp_path / 'summary.json'}"]
