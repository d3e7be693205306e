"""Whole runs of pretraining: what they write, how they end, what they refuse."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from accelerate import PartialState
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from fastff.hf.pretrain import Interrupted, PretrainConfig, pretrain
from fastff.hf.pretrain import callbacks as callbacks_module
from fastff.hf.pretrain.callbacks import LogCallback
from fastff.hf.pretrain.commands import pretrain_command
from fastff.hf.pretrain.log import RunLog
from fastff.hf.pretrain.schedule import Progress
from fastff.nn import TreeFeedForward

SHAPE = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2"
LLAMA = SHAPE + ",intermediate_size=24,max_position_embeddings=16"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """A file of sentences of few words, which a model learns quickly."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 5))) for _ in range(60)]
    lines = [" ".join(draw.choices(words[:20], k=8)) for _ in range(600)]
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n".join(lines))
    return str(path)


def config(text: str, **settings) -> PretrainConfig:
    small = {
        "data": text,
        "shape": SHAPE,
        "vocab_size": 120,
        "length": 16,
        "tokens": 8000,
        "validation": 4,
        "batch_size": 4,
        "start_batch": 4,
        "end_batch": 12,
        "lr": 1e-2,
        "logs": 8,
        "evaluations": 4,
    }
    return PretrainConfig(**small | settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_writes_its_folder(text, tmp_path, capsys):
    out = tmp_path / "run"
    c = config(text, feedforward="tree:depth=2,leaf_width=2", balance=0.1)
    result = pretrain(c, out)
    assert {p.name for p in out.iterdir()} == {
        *(".lock", "config.json", "metrics.jsonl", "model", "result.json", "tensorboard", "tokenizer")
    }
    assert json.loads((out / "result.json").read_text()) == result
    steps = [row for row in rows(out) if "loss" in row]
    evaluations = [row for row in rows(out) if "validation_loss" in row]
    assert len(steps) == 8
    assert len(evaluations) == 4
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.3
    assert result["validation_loss"] == evaluations[-1]["validation_loss"] < evaluations[0]["validation_loss"]
    assert steps[-1]["tokens"] == result["tokens"] == 8000
    assert steps[0]["batch"] < 12
    assert steps[-2]["batch"] == 12
    assert max(row["lr"] for row in steps) <= c.lr
    assert steps[-1]["lr"] < 0.3 * c.lr
    assert all(row["grad_norm"] > 0 for row in steps)
    assert set(evaluations[-1]["layers"]) == {f"model.layers.{i}.feedforward" for i in (0, 1)}
    for use in evaluations[-1]["layers"].values():
        assert 1 <= use["effective_leaves"] <= use["leaves"] == 4
        assert 0 < use["used_leaves"] <= 1
        assert use["mean_entropy"] > 0
    assert (result["training_width"], result["inference_width"]) == (2 * 11, 2 * 4)
    model = AutoModelForMaskedLM.from_pretrained(out / "model")
    card = (out / "model" / "README.md").read_text()
    assert "# run\n" in card
    assert f"| {result['validation_loss']:.4f} |" in card
    assert "a token runs 8 of their 22 neurons" in card
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]
    assert model.config.feedforward == c.feedforward
    assert len(AutoTokenizer.from_pretrained(out / "model")) == model.config.vocab_size
    for path in (out / "result.json", *(out / "model").glob("*.json")):
        assert str(tmp_path.parent) not in path.read_text()
    assert list((out / "tensorboard").iterdir())
    said = capsys.readouterr()
    assert "validation loss" in said.out
    assert "tokens/s" in said.out
    assert not said.err


def test_a_finished_run_is_returned_and_another_is_refused(text, tmp_path):
    c = config(text, tokens=500, feedforward="none")
    result = pretrain(c, tmp_path / "run", quiet=True)
    assert pretrain(c, tmp_path / "run", resume=True) == result
    with pytest.raises(ValueError, match="already holds a run"):
        pretrain(c, tmp_path / "run")
    with pytest.raises(ValueError, match=r"lr=0.01 \(now 0.02\)"):
        pretrain(config(text, tokens=500, feedforward="none", lr=0.02), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "llama", "shape": LLAMA, "precision": "bf16", "feedforward": "moe:experts=4,expert_width=4"},
        {"model": "gpt2", "feedforward": "tree:depth=2,leaf_width=2", "gradient_checkpointing": True, "balance": 0.1},
        {"model": "llama", "shape": LLAMA, "schedule": "cosine"},
    ],
    ids=["llama-moe-bf16", "gpt2-tree-checkpointing", "llama-dense"],
)
def test_causal_models_learn_and_load(text, tmp_path, settings):
    c = config(text, objective="causal", vocab_size=300, **settings)
    result = pretrain(c, tmp_path / "run", quiet=True)
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
    assert (result["inference_width"] > 0) == bool(c.feedforward)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model.config.eos_token_id == tokenizer.eos_token_id is not None
    assert model.config.use_cache is True
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]


@pytest.mark.parametrize("kind", ["ultrafastbert", "llama"])
def test_training_goes_on_from_weights(text, tmp_path, kind):
    objective, shape = ("masked", SHAPE) if kind == "ultrafastbert" else ("causal", LLAMA)
    settings = {"objective": objective, "vocab_size": 300, "evaluations": 50, "end_batch": 4}
    layer = "tree:depth=2,leaf_width=2"
    first = pretrain(config(text, **settings, model=kind, shape=shape, feedforward=layer), tmp_path / "a", quiet=True)
    c = config(text, **settings, model=str(tmp_path / "a" / "model"), from_weights=True, shape="", lr=1e-4, tokens=640)
    second = pretrain(c, tmp_path / "b", quiet=True)
    evaluations = [row["validation_loss"] for row in rows(tmp_path / "b") if "validation_loss" in row]
    assert abs(evaluations[0] - first["validation_loss"]) < 0.05
    assert second["inference_width"] == first["inference_width"] == 8
    assert str(tmp_path) not in (tmp_path / "b" / "model" / "config.json").read_text()


def test_minutes_end_a_run(text, tmp_path):
    result = pretrain(config(text, tokens=None, minutes=0.02, feedforward="none"), tmp_path / "run", quiet=True)
    steps = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert 1.2 <= result["seconds"] < 2.5
    assert steps[-1]["seconds"] == pytest.approx(result["seconds"], abs=1e-3)
    assert steps[-1]["lr"] < 0.2 * 1e-2 < steps[0]["lr"]
    assert steps[-1]["batch"] == 12


def test_a_seed_decides_the_weights(text, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        c = config(text, tokens=500, seed=seed, feedforward="tree:depth=1,leaf_width=2")
        pretrain(c, tmp_path / name, quiet=True)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_trees_grow_out_of_dense_layers(text, tmp_path):
    c = config(text, feedforward="tree:depth=3,leaf_width=2", grow=0.5, evaluations=40)
    result = pretrain(c, tmp_path / "run", quiet=True)
    evaluations = [row for row in rows(tmp_path / "run") if "layers" in row]
    leaves = [next(iter(row["layers"].values()))["leaves"] for row in evaluations]
    assert leaves == sorted(leaves)
    assert set(leaves) == {1, 2, 4, 8}
    for before, after in zip(evaluations, leaves, strict=True):  # level k at (k / 3)^2 of the first half
        assert after == 2 ** min(3, int(3 * (before["tokens"] / 4000) ** 0.5))
    assert result["inference_width"] == 2 * 5
    c = config(text, feedforward="tree:depth=3,leaf_width=2", tokens=64)  # one step
    for use in pretrain(c, tmp_path / "short", quiet=True)["layers"].values():
        assert use["leaves"] == 8


def test_trees_are_initialised_from_the_data(text, tmp_path):
    first = {}
    for initialise in (False, True):
        c = config(text, feedforward="tree:depth=3,leaf_width=2", lr=1e-6, tokens=64, initialise=initialise, grow=0.0)
        first[initialise] = pretrain(c, tmp_path / str(initialise), quiet=True)["layers"]
    assert all(use["effective_leaves"] > 7 for use in first[True].values())
    assert all(use["effective_leaves"] < 7 for use in first[False].values())


def test_a_collapse_is_warned_of_once(text, tmp_path, capsys):
    layer = nn.Sequential(TreeFeedForward(4, depth=3, leaf_width=1)).eval()
    log = RunLog(tmp_path, 0, "a run", quiet=False)
    PartialState()  # which a Trainer makes
    args = SimpleNamespace(device=torch.device("cpu"))
    callback = LogCallback(Progress(config(text), unit=4), log)
    given = {"metrics": {"eval_loss": 1.0}, "model": layer}
    said = []
    for bias in (0.0, 100.0, 100.0):
        layer[0].node_bias.data.fill_(bias)
        layer(torch.randn(2000, 4))
        callback.on_prediction_step(None, None, None, **given)
        callback.on_evaluate(args, None, None, **given)
        said.append(" ".join(capsys.readouterr().out.split()))
    log.close()
    assert "collapsed" not in said[0]
    assert "layer '0' has collapsed: as good as 1.0 of its 8 leaves" in said[1]
    assert "collapsed" not in said[2]
    assert callback.progress.warned


def test_a_loss_that_is_no_number_ends_the_run(text, tmp_path):
    with pytest.raises(ValueError, match="diverged"):
        pretrain(config(text, lr=1e30, clip=1e30, feedforward="dense:width=8"), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"data": "./nowhere.txt"}, "nowhere"),
        ({"tokenizer": "./nowhere"}, "nowhere"),
        ({"shape": "width=3"}, "width"),
        ({"feedforward": "tree:depth=-1,leaf_width=2"}, "depth"),
        ({"vocab_size": 10}, "vocab_size"),
        ({"length": 100_000}, "100000"),
    ],
)
def test_settings_that_cannot_run_leave_nothing(text, tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        pretrain(config(text, **settings), tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").rglob("*.json"))


def test_the_command_has_an_option_for_every_setting(text, tmp_path):
    app = typer.Typer()
    app.command()(pretrain_command)
    arguments = ["--data", text, "--tokens", "300", "--length", "16", "--vocab-size", "120", "--shape", SHAPE]
    arguments += ["--batch-size", "4", "--start-batch", "4", "--end-batch", "4", "--feedforward", "none"]
    done = CliRunner().invoke(app, [*arguments, "--validation", "4", "--out", str(tmp_path / "run"), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "validation loss" in done.output
    assert "saved in" in done.output


NOISY = {
    "shape": SHAPE + ",hidden_dropout_prob=0.1",
    "feedforward": "tree:depth=3,leaf_width=2,gradient=sampled",
    "grow": 0.9,  # so that a level begins between the steps at which a run is stopped
    "tokens": 4000,
    "logs": 7,
    "evaluations": 3,
    "checkpoints": 9,
    "balance": 0.1,
}

KILLED = """
import json, os, signal, sys
from pathlib import Path
from fastff.hf.pretrain import PretrainConfig, pretrain
from fastff.hf.pretrain import callbacks
from fastff.hf.pretrain.schedule import Progress

out, moment, step, values = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "checkpoint":  # all is written but the mark that it is whole
    write = callbacks.write_json
    callbacks.write_json = lambda path, value: kill() if value["step"] >= step else write(path, value)
else:
    end = Progress.end_step
    Progress.end_step = lambda self, seconds: kill() if self.step >= step else end(self, seconds)
pretrain(PretrainConfig(**values), out, resume=True, quiet=True)
"""


def test_a_killed_run_is_resumed_to_the_same_weights(text, tmp_path):
    c = config(text, **NOISY)
    result = pretrain(c, tmp_path / "whole", quiet=True)
    out = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    for moment, step in (("checkpoint", 12), ("step", 20)):
        command = [sys.executable, "-c", KILLED, str(out), moment, str(step), json.dumps(c.to_dict())]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        found = sorted((out / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
        whole = [(p / callbacks_module.PROGRESS).exists() for p in found]
        assert whole == ([True, False] if moment == "checkpoint" else [True, True])
    resumed = pretrain(c, out, resume=True, quiet=True)
    assert same(weights(tmp_path / "whole"), weights(out))
    assert resumed["validation_loss"] == result["validation_loss"]
    changing = {"seconds"}
    a, b = ([{k: v for k, v in row.items() if k not in changing} for row in rows(f)] for f in (tmp_path / "whole", out))
    assert [row["step"] for row in a] == [row["step"] for row in b]
    assert [row for row in a if "layers" in row] == [row for row in b if "layers" in row]
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_checkpoint_to_go_on_from(text, tmp_path, monkeypatch, number):
    c = config(text, **NOISY)
    pretrain(c, tmp_path / "whole", quiet=True)
    end = Progress.end_step

    def interrupt(self: Progress, seconds: float) -> None:
        end(self, seconds)
        if self.step == 5:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "end_step", interrupt)
        with pytest.raises(Interrupted):
            pretrain(c, tmp_path / "run", quiet=True)
    # The signal comes after this step's flag was read, so the next step ends the run.
    progress = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-6" / callbacks_module.PROGRESS).read_text())
    assert progress["step"] == 6
    assert not (tmp_path / "run" / "result.json").exists()
    pretrain(c, tmp_path / "run", resume=True, quiet=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
