import json
import math

import pytest

from fastff.runs.mean_and_error import mean_and_error
from fastff.train import Interrupted
from fastff.train.compare import (
    PRESETS,
    Candidate,
    Comparison,
    compare,
    preset,
    runner,
    runs_of,
    with_dense_baselines,
)

BASE = {"limit": 200, "validation": 40, "epochs": 2, "batch_size": 64, "lr": 5e-3}


def small(seeds: int = 2) -> Comparison:
    candidates = (
        Candidate("dense 4", "dense:width=4", ({"lr": 1e-5}, {"lr": 2e-2})),
        Candidate("FFF", "fff:depth=1,leaf_width=3", ({"hardening": 1.0},), {"test_accuracy": 90.0, "source": "paper"}),
    )
    return Comparison("small", "A test.", BASE, candidates, seeds)


def test_rows_hold_means_and_errors_over_seeds_of_the_trial_that_validates_best(tmp_path):
    summary = compare(small(), tmp_path)
    assert summary == json.loads((tmp_path / "comparison.json").read_text())
    assert summary["runs"] == {"done": 6, "all": 6}
    dense, fff = summary["rows"]
    assert dense["settings"] == {"lr": 2e-2}  # with 1e-5 nothing is learned
    found = [trial["validation_accuracy"]["mean"] for trial in dense["trials"]]
    assert dense["metrics"]["validation_accuracy"]["mean"] == max(found) == found[1]
    values = fff["metrics"]["test_accuracy"]["values"]
    assert len(values) == 2
    assert fff["metrics"]["test_accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert fff["metrics"]["test_accuracy"]["error"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert fff["published"]["test_accuracy"] == 90.0
    assert fff["facts"]["inference_width"] == 4
    assert "test_soft_accuracy" in fff["metrics"]
    assert "test_soft_accuracy" not in dense["metrics"]
    assert len(fff["curves"]["validation_accuracy"]) == 2
    assert len(fff["curves"]["node_entropy"][0]) == 1


def test_finished_runs_are_not_repeated_and_an_interrupted_one_goes_on(tmp_path, monkeypatch):
    calls = []
    real = runner.train

    def counting(config, *args, **kwargs):
        if len(calls) == 3:
            calls.append(None)
            raise Interrupted
        calls.append(config)
        return real(config, *args, **kwargs)

    monkeypatch.setattr(runner, "train", counting)
    with pytest.raises(Interrupted):
        compare(small(), tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text())["runs"] == {"done": 3, "all": 6}
    summary = compare(small(), tmp_path)
    assert len(calls) == 3 + 1 + 3
    assert summary["runs"]["done"] == 6
    compare(small(), tmp_path)
    assert len(calls) == 7


@pytest.mark.slow
def test_runs_in_parallel_give_the_same_figures(tmp_path):
    one = compare(small(1), tmp_path / "one")
    two = compare(small(1), tmp_path / "two", jobs=2)
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert a["metrics"]["test_accuracy"]["values"] == pytest.approx(
            b["metrics"]["test_accuracy"]["values"], abs=2.0
        )


def test_a_run_that_fails_ends_those_beside_it(tmp_path):
    rows = tuple(Candidate(f"dense {width}", f"dense:width={width}", ({},)) for width in (4, 2))
    comparison = Comparison("small", "A test.", {**BASE, "epochs": 1_000_000}, rows, 1)  # some hours
    bad = runs_of(comparison)[1].folder(tmp_path)
    (bad / "checkpoints/step-1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no config\.json"):
        compare(comparison, tmp_path, jobs=2)


def test_every_setting_changes_the_folder_of_a_run():
    a = runs_of(small())[0]
    changed = runs_of(Comparison("small", "A test.", {**BASE, "balance": 0.2}, small().candidates, 2))[0]
    assert a.key != changed.key
    assert len({run.key for run in runs_of(small())}) == 6


@pytest.mark.parametrize("name", PRESETS)
def test_presets_show_a_dense_layer_of_every_inference_width(name):
    from fastff.train import build_layer

    comparison = preset(name)
    runs_of(comparison)  # all settings are valid
    layers = {c.label: build_layer(c.layer, 32, 32) for c in comparison.candidates}
    dense = {layers[c.label].width for c in comparison.candidates if c.layer.startswith("dense")}
    assert {layer.inference_width for layer in layers.values()} <= dense


def test_published_figures_stand_only_beside_their_own_data():
    assert preset("p1-explorative").candidates[0].published["test_accuracy"] == 98.1
    assert preset("p1-explorative", data="z/fashion_mnist").candidates[0].published["test_accuracy"] == 89.6
    assert not preset("p1-explorative", data="digits").candidates[0].published


def test_presets_can_be_changed():
    comparison = preset("quick", data="folder", seeds=1, only="tree", epochs=3)
    assert {c.label for c in comparison.candidates} == {
        *("Tree d2 l2", "Tree d3 l4", "Tree d4 l8", "Tree d4 l16"),
        *("dense 4", "dense 7", "dense 12", "dense 20"),  # of the same inference widths
    }
    assert all(run.config.epochs == 3 and run.config.data == "folder" for run in runs_of(comparison))
    with pytest.raises(ValueError, match="preset"):
        preset("slow")
    with pytest.raises(ValueError, match="only='nothing'"):
        preset("quick", only="nothing")


def test_dense_rows_that_are_there_are_not_added_again():
    rows = (Candidate("dense 4", "dense:width=4", ({},)), Candidate("U", "ultra:depth=3", ({},)))
    assert [c.label for c in with_dense_baselines(rows, ({},))] == ["dense 4", "U"]
    assert [c.label for c in with_dense_baselines(rows[1:], ({},))] == ["U", "dense 4"]


def test_labels_must_differ_and_seeds_be_positive():
    with pytest.raises(ValueError, match="unique"):
        Comparison("x", "", {}, (Candidate("a", "dense:width=1", ({},)),) * 2, 1)
    with pytest.raises(ValueError, match="seeds"):
        Comparison("x", "", {}, (), 0)
    with pytest.raises(ValueError, match="jobs"):
        compare(small(), "nowhere", jobs=0)


def test_mean_and_standard_error():
    assert mean_and_error([3.0]) == {"mean": 3.0, "error": None, "values": [3.0]}
    assert mean_and_error([1.0, 2.0, 3.0])["error"] == pytest.approx(1 / math.sqrt(3))
