import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from fastff.nn.usage import collapse_warning
from fastff.runs.files import lock_folder
from fastff.train import Interrupted, TrainConfig, load_data, train
from fastff.train.run import Run

SMALL = {"limit": 300, "validation": 60, "epochs": 3, "batch_size": 32}


def config(**settings) -> TrainConfig:
    return TrainConfig(**{**SMALL, **settings})


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "settings",
    [
        {"layer": "tree:depth=2,leaf_width=4", "balance": 0.1, "initialise": True, "lr": 5e-3},
        {"layer": "fff:depth=2,leaf_width=4,region_leak=0.05", "hardening": 0.1, "optimizer": "sgd", "lr": 0.2},
        {"layer": "moe:experts=4,expert_width=8", "importance": 0.1, "load": 0.1, "lr": 5e-3},
        {"layer": "dense:width=16", "schedule": "plateau", "plateau_epochs": 1, "lr": 5e-3},
        {"layer": "fff:depth=1,leaf_width=8", "optimizer": "blockwise-adam", "block_batch": 8, "lr": 5e-3},
        {"layer": "ultra:depth=2,trees=2", "accumulation": 3, "clip": 1.0, "input_dropout": 0.1, "lr": 5e-3},
        {"layer": "tree:depth=1,leaf_width=4", "precision": "bf16", "lr": 5e-3},
    ],
    ids=lambda s: s["layer"].split(":")[0],
)
def test_training_learns_and_writes_its_folder(tmp_path, settings):
    c = config(epochs=8, **settings)
    result = train(c, tmp_path / "run", quiet=True)
    assert result["history"][-1]["loss"] < result["history"][0]["loss"]
    assert result["test_accuracy"] > 20  # chance is 10
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "model.safetensors", "result.json", "tensorboard"} <= names
    assert "checkpoints" not in names
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 9))
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    best = max(lines, key=lambda line: line["validation_accuracy"])
    assert result["validation_accuracy"] == best["validation_accuracy"]
    assert result["best_epoch"] == best["epoch"]


def test_accumulation_gives_the_gradients_of_the_whole_batch(tmp_path):
    plain = train(config(layer="dense:width=8", epochs=1, optimizer="sgd", lr=0.1), tmp_path / "a", quiet=True)
    parts = train(
        config(layer="dense:width=8", epochs=1, optimizer="sgd", lr=0.1, accumulation=5), tmp_path / "b", quiet=True
    )
    assert plain["history"][0]["loss"] == pytest.approx(parts["history"][0]["loss"], rel=1e-6)
    for a, b in zip(weights(tmp_path / "a").values(), weights(tmp_path / "b").values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config(epochs=1, seed=seed), tmp_path / name, quiet=True)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


RESUMED = config(
    layer="fff:depth=2,leaf_width=4,region_leak=0.1,dropout=0.1",
    input_dropout=0.1,
    hardening=0.1,
    hardening_schedule="warmup",
    lr=5e-3,
)


GROWING = config(layer="tree:depth=3,leaf_width=2", grow=0.8, lr=5e-3)


LEAF_ALONE = config(layer="tree:depth=0,leaf_width=4")  # some of its tensors have no elements


@pytest.mark.parametrize(
    ("resumed", "stop_after"), [(RESUMED, 1), (RESUMED, 9), (RESUMED, 17), (GROWING, 14), (LEAF_ALONE, 9)]
)
def test_an_interrupt_resumes_to_the_same_weights(tmp_path, monkeypatch, resumed, stop_after):
    expected = train(resumed, tmp_path / "whole", quiet=True)
    steps = 0
    step = Run._step

    def interrupted_step(self, batch):
        nonlocal steps
        steps += 1
        if steps == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(Run, "_step", interrupted_step)
    with pytest.raises(Interrupted):
        train(resumed, tmp_path / "parts", quiet=True)
    assert not (tmp_path / "parts" / "result.json").exists()
    found = train(resumed, tmp_path / "parts", quiet=True, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    drop_times = lambda r: [{k: v for k, v in row.items() if k != "seconds"} for row in r["history"]]  # noqa: E731
    assert drop_times(found) == drop_times(expected)


KILLED = """
import sys
from fastff.train import TrainConfig, train
train(TrainConfig.read(__import__("pathlib").Path(sys.argv[1])), sys.argv[2], resume=True, quiet=True,
      checkpoint_seconds=0.0)
"""


def test_a_kill_at_any_moment_resumes_to_the_same_weights(tmp_path):
    c = config(layer="tree:depth=2,leaf_width=4,gradient=sampled", input_dropout=0.1, lr=5e-3, epochs=6)
    train(c, tmp_path / "whole", quiet=True)
    (tmp_path / "config.json").write_text(json.dumps(c.to_dict()))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.json"), str(tmp_path / "parts")]
    checkpoints = tmp_path / "parts" / "checkpoints"
    seen = 0
    for kills in range(2):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            newest = max((p.name for p in checkpoints.glob("step-*")), default="step-000000-000000000")
            epoch, step = (int(part) for part in newest.split("-")[1:])
            found = 8 * epoch + step
            if found > seen + 3:
                seen = found
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"kill {kills}: the run had ended before it could be killed"
    assert not (tmp_path / "parts" / "result.json").exists()
    train(c, tmp_path / "parts", quiet=True, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_finished_run_is_returned_and_never_overwritten(tmp_path):
    c = config(epochs=1)
    first = train(c, tmp_path, quiet=True)
    assert train(c, tmp_path, quiet=True, resume=True) == first
    with pytest.raises(ValueError, match="already holds a run"):
        train(c, tmp_path, quiet=True)
    with pytest.raises(ValueError, match=r"lr=0\.002 \(now 0\.1\)"):
        train(config(epochs=1, lr=0.1), tmp_path, quiet=True, resume=True)


def test_patience_ends_training(tmp_path):
    result = train(config(layer="dense:width=8", lr=0.0, epochs=20, patience=2), tmp_path, quiet=True)
    assert result["epochs"] == 3
    assert result["best_epoch"] == 1


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        train(config(), tmp_path / "file" / "run", quiet=True)


def test_collapse_is_warned_of_once_in_words_that_help(tmp_path, capsys):
    c = config(layer="fff:depth=4,leaf_width=2", optimizer="sgd", lr=0.2, hardening=10.0, epochs=4)
    train(c, tmp_path)
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("has collapsed") == 1
    assert "balance" in text


def test_no_warning_without_collapse():
    assert collapse_warning({"layer": {"leaves": 16, "effective_leaves": 12.0}}) is None
    assert collapse_warning({"layer": {"leaves": 2, "effective_leaves": 1.0}}) is None
    assert "1.5 of its 16" in (collapse_warning({"layer": {"leaves": 16, "effective_leaves": 1.5}}) or "")


def test_data_can_be_given_and_are_not_loaded_again(tmp_path, monkeypatch):
    data = load_data("digits", limit=300, validation=60)
    monkeypatch.setattr("fastff.train.loop.load_data", lambda *a, **k: pytest.fail("loaded again"))
    assert train(config(epochs=1), tmp_path, quiet=True, data=data)["samples"]["train"] == 240


@pytest.mark.parametrize("name", ["progress.json", "model.safetensors", "generators-0.safetensors", "optimizer.bin"])
def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Run, "finish", lambda self: {})
    train(config(epochs=1), tmp_path, quiet=True, checkpoint_seconds=0.0)
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    (checkpoint / name).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{checkpoint.name} cannot be restored"):
        train(config(epochs=1), tmp_path, quiet=True, resume=True)


def test_a_checkpoint_of_another_version_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "finish", lambda self: {})
    train(config(epochs=1), tmp_path, quiet=True, checkpoint_seconds=0.0)
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    progress = json.loads((checkpoint / "progress.json").read_text())
    (checkpoint / "progress.json").write_text(json.dumps({**progress, "levels": 2}))
    with pytest.raises(ValueError, match=f"{checkpoint.name} cannot be restored.*levels"):
        train(config(epochs=1), tmp_path, quiet=True, resume=True)


def test_checkpoints_of_an_unknown_run_are_not_taken_up(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "finish", lambda self: {})
    train(config(epochs=1), tmp_path, quiet=True, checkpoint_seconds=0.0)
    (tmp_path / "config.json").unlink()
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"no config\.json"):
            train(config(epochs=1, seed=7), tmp_path, quiet=True, resume=resume)


def test_the_best_weights_are_part_of_a_checkpoint(tmp_path, monkeypatch):
    """What a later epoch left in the folder before the run was killed does not count."""
    monkeypatch.setattr(Run, "finish", lambda self: {})
    train(config(epochs=2), tmp_path, quiet=True, checkpoint_seconds=0.0)
    best = {name: t.clone() for name, t in weights(tmp_path).items()}  # the file is mapped into memory
    (tmp_path / "model.safetensors").write_bytes(b"of a later epoch")
    train(config(epochs=2), tmp_path, quiet=True, resume=True)
    assert same(best, weights(tmp_path))


def test_a_run_that_diverges_ends_and_says_so(tmp_path, capsys):
    c = config(layer="dense:width=8,activation=identity", optimizer="sgd", lr=1e9, schedule="constant", epochs=50)
    result = train(c, tmp_path)
    assert result["diverged"]
    assert result["epochs"] < 50
    assert "diverged" in " ".join(capsys.readouterr().out.split())
    assert result["history"][-1]["loss"] is None
    json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


def test_moving_vectors_is_refused_and_leaves_nothing(tmp_path):
    rows = "\n".join(f"{i},{i % 3},{i % 2}" for i in range(40))
    (tmp_path / "v.csv").write_text(f"a,b,label\n{rows}\n")
    with pytest.raises(ValueError, match="shift and flip need images"):
        train(TrainConfig(data=str(tmp_path / "v.csv"), shift=1), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_has_one_writer(tmp_path):
    with lock_folder(tmp_path), pytest.raises(ValueError, match="in use by another process"):
        train(config(epochs=1), tmp_path, quiet=True)
    lock_folder(tmp_path).close()


TWO = """
import os, pathlib, sys
from fastff.train import TrainConfig, train
assert os.environ["WORLD_SIZE"] == "2"
train(TrainConfig.read(pathlib.Path(sys.argv[1])), sys.argv[2], resume=True, quiet=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer", ["fff:depth=3,leaf_width=2", "tree:depth=3,leaf_width=2", "moe:experts=8,expert_width=2", "dense:width=4"]
)
def test_two_processes_train_one_model(tmp_path, layer):
    """The batch is shared: without noise the losses are those of one process. The last batch has one sample."""
    c = config(layer=layer, lr=5e-3, epochs=2, limit=317)  # 257 = 8 * 32 + 1 for training
    (tmp_path / "config.json").write_text(json.dumps(c.to_dict()))
    (tmp_path / "script.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / name) for name in ("script.py", "config.json", "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=300, env=environment)
    found = json.loads((tmp_path / "two" / "result.json").read_text())
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 2
    for use in found["history"][0]["layers"].values():
        assert sum(use["leaf_counts"][0]) in (60, 120)  # of all validation samples, top 2 of an MoE
    if not layer.startswith("moe"):
        alone = train(c, tmp_path / "one", quiet=True)
        # The balance loss is not a mean over samples, so a tree's differs a little.
        tolerance = 1e-4 if layer.startswith("dense") else 0.05
        for a, b in zip(found["history"], alone["history"], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)
    subprocess.run(command, check=True, timeout=300, env=environment)  # finished: returned as it is


def test_a_tree_grows_to_its_depth_in_its_share_of_the_steps(tmp_path):
    c = config(layer="tree:depth=3,leaf_width=2", grow=0.5, epochs=8, initialise=False, lr=1e-2)
    result = train(c, tmp_path, quiet=True)
    leaves = [row["layers"]["layer"]["leaves"] for row in result["history"]]
    assert leaves == sorted(leaves)
    assert leaves[0] < 8
    assert leaves[4:] == [8] * 4
    assert result["best_epoch"] > leaves.index(8)
    assert result["layers"]["layer"]["leaves"] == 8
    plain = train(config(layer="tree:depth=3,leaf_width=2", grow=0.0, epochs=1), tmp_path / "plain", quiet=True)
    assert plain["history"][0]["layers"]["layer"]["leaves"] == 8


def test_growing_without_training_long_enough_still_ends_with_the_whole_tree(tmp_path):
    result = train(config(layer="tree:depth=4,leaf_width=1", grow=0.99, epochs=1, limit=64), tmp_path, quiet=True)
    assert result["layers"]["layer"]["leaves"] == 16


def test_what_cannot_grow_is_refused():
    with pytest.raises(ValueError, match="grow must be 0 with optimizer 'blockwise-adam', got 0.5"):
        TrainConfig(grow=0.5, optimizer="blockwise-adam")
    assert TrainConfig(layer="dense:width=4", grow=0.5, optimizer="blockwise-adam").grow == 0.5
