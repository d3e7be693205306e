"""Speed at equal loss: losses, the dense layer of the same loss, speedups; layers in a precision each."""

import json
import math
import sys

import pytest
import torch

from fastff import cli
from fastff.bench.equal_loss import KnownLayer, dense_curve, equal_width, read_losses, speedups
from fastff.bench.equal_loss_plot import short_name
from fastff.bench.precision import layer_candidate, split_precision
from fastff.bench.settings import Settings

TREE = "tree:depth=9,leaf_width=1,trees=8"


def known(layer: str, loss: float, precisions: tuple[str, ...] = ()) -> KnownLayer:
    return KnownLayer(layer, loss, 1, precisions)


CURVE = [known("dense:width=100", 4.4), known("dense:width=400", 4.2), known("dense:width=800", 4.1)]


def write(path, *runs) -> str:
    rows = [{"layer": layer, "grow": grow, "validation_loss": loss, **more} for layer, grow, loss, more in runs]
    path.write_text(json.dumps({"runs": rows}))
    return str(path)


def test_losses_are_means_over_seeds_of_the_usual_growth(tmp_path):
    path = write(
        tmp_path / "losses.json",
        (TREE, 0.4, 4.1, {"precisions": {"float32": 4.1, "int8": 4.101, "bfloat16": 4.2}}),
        (TREE, 0.4, 4.3, {"precisions": {"int8": 4.308}}),
        (TREE, 0.1, 3.0, {}),
        ("dense:width=8", 0.4, 4.0, {}),
    )
    dense, tree = read_losses(path)
    assert dense == KnownLayer("dense:width=8", 4.0, 1, ())
    assert tree.text == TREE
    assert tree.loss == pytest.approx(4.2)
    assert tree.seeds == 2
    assert tree.precisions == ("float32", "int8")  # 0.0045 worse on average
    assert dense.width == 8
    assert tree.width is None


def test_of_several_learning_rates_the_best_counts(tmp_path):
    rates = [(3e-3, 4.3), (1e-3, 4.1), (1e-3, 4.2), (2e-3, 4.4)]
    path = write(tmp_path / "losses.json", *((TREE, 0.4, loss, {"lr": lr}) for lr, loss in rates))
    assert [(layer.loss, layer.seeds) for layer in read_losses(path)] == [(pytest.approx(4.15), 2)]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"runs": []}', '{"runs": [{"layer": 3}]}'])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "losses.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"losses must be a file of examples/compare_decoders.py, got '.*losses.json'"):
        read_losses(path)
    with pytest.raises(ValueError, match="losses must be a file"):
        read_losses(tmp_path / "none")
    with pytest.raises(ValueError, match="losses must name"):
        read_losses(None)


def test_the_curve_leaves_out_what_is_wider_and_no_better():
    layers = [*CURVE, known("dense:width=600", 4.3), known("dense:width=6000", 4.15), known(TREE, 3)]
    assert dense_curve(layers) == CURVE


def test_the_width_is_interpolated_in_its_logarithm_and_never_beyond():
    assert equal_width(4.3, CURVE) == pytest.approx(200)
    assert equal_width(4.15, CURVE) == pytest.approx(400 * math.sqrt(2))
    assert equal_width(4.4, CURVE) == pytest.approx(100)
    assert equal_width(4.1, CURVE) == pytest.approx(800)
    assert equal_width(4.41, CURVE) is None
    assert equal_width(4.09, CURVE) is None


def times(**seconds: dict[str, float]) -> list[dict]:
    return [
        {"pass": "forward", "tokens": 16, "series": layer, "dtype": precision, "median_s": value}
        for layer, by_precision in seconds.items()
        for precision, value in by_precision.items()
    ]


def test_the_speedup_is_that_over_the_fastest_dense_layer_of_the_same_loss():
    dense = {"float32": 10.0, "int8": 4.0}
    rows = times(**{"dense:width=100": dense, "dense:width=400": {"float32": 40.0, "int8": 10.0}})
    rows += times(**{TREE: {"float32": 3.0, "bfloat16": 1.0, "int8": 2.0}, "moe:x": {"float32": 1.0}})
    better, worse = known("tree:depth=1,leaf_width=1", 4.0), known("ultra:depth=3", 5.0)
    rows += times(**{better.text: {"float32": 1.0}, worse.text: {"float32": 1.0}})
    rows += times(**{"dense:width=800": {"float32": 50.0, "int8": 20.0}})
    found = speedups(rows, [*CURVE, known(TREE, 4.3, ("int8",)), better, worse])
    tree, good, bad = found
    assert tree["dense_width"] == pytest.approx(200)
    assert tree["precision"] == "int8"  # bfloat16 was not measured to keep the loss
    assert tree["dense_precision"] == "int8"
    assert tree["dense_seconds"] == pytest.approx(6.0)  # linear in the width
    assert tree["speedup"] == pytest.approx(3.0)
    assert good["beyond"]
    assert not bad["beyond"]
    assert good["dense_width"] == 800  # the widest: a lower bound
    assert good["speedup"] == pytest.approx(20.0)
    assert bad["speedup"] is None


def test_of_gradients_that_are_sparse_or_not_the_faster_ones_count():
    layer = {"pass": "forward + backward", "tokens": 128, "dtype": "float32", "series": TREE}
    dense = [
        {**layer, "series": "dense:width=100", "median_s": 4.0},
        {**layer, "series": "dense:width=400", "median_s": 8.0},
    ]
    for times in ((2.0, 3.0), (3.0, 2.0)):
        rows = [*dense, *({**layer, "median_s": seconds} for seconds in times)]
        (tree,) = speedups(rows, [*CURVE, known(TREE, 4.4)])
        assert tree["speedup"] == pytest.approx(2.0)
    plain, sparse = (layer_candidate(Settings(), f"{TREE}@float32", sparse=sparse) for sparse in (False, True))
    assert plain.series == sparse.series
    assert plain.label != sparse.label
    assert [layer.make("meta").sparse for layer in (plain, sparse)] == [False, True]


def test_the_command_writes_table_picture_and_json(tmp_path, monkeypatch, capsys):
    losses = write(
        tmp_path / "losses.json",
        ("dense:width=4", 0.4, 4.4, {}),
        ("dense:width=16", 0.4, 4.2, {}),
        ("tree:depth=2,leaf_width=1,trees=2,rank=4", 0.4, 4.3, {"precisions": {"int8": 4.3}}),
        ("moe:experts=4,expert_width=2", 0.4, 4.35, {}),
    )
    options = ["--in-features", "8", "--rounds", "3", "--budget", "0.05", "--tokens", "1,4", "--losses", losses]
    monkeypatch.setattr(sys, "argv", ["fastff", "bench", "equal-loss", *options, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    output, error = capsys.readouterr()
    assert (ended.value.code or 0, error) == (0, "")
    written = json.loads((tmp_path / "equal-loss.json").read_text())
    assert written["left_out"] == []
    calls = {(row["pass"], row["tokens"]) for row in written["equal_loss"]}
    assert {tokens for _, tokens in calls} == {1, 4}
    assert len(calls) == 4  # two forward, one with layers in turn, one training
    tree = [row for row in written["equal_loss"] if row["layer"].startswith("tree")]
    assert len(tree) == 4
    assert all(row["dense_width"] == pytest.approx(8) and row["speedup"] > 0 for row in tree)
    assert (tmp_path / "equal-loss.png").read_bytes().startswith(b"\x89PNG")
    assert "times faster" in output


def test_a_layer_names_its_precision():
    assert split_precision("dense:width=4") == ("dense:width=4", "float32")
    assert split_precision(f"{TREE}@int8") == (TREE, "int8")
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, float16, int8, got 'int4'"):
        split_precision("dense:width=4@int4")
    candidate = layer_candidate(Settings(in_features=8, out_features=8), "tree:depth=2,leaf_width=1@int8")
    assert candidate.dtype_name == "int8"
    assert candidate.build(training=False).int8 is not None
    assert layer_candidate(Settings(), "dense:width=4@float16").dtype == torch.float16


def test_short_names():
    assert short_name(TREE) == "8 trees d9"
    text = "tree:depth=11,leaf_width=2,trees=16,rank=64,contributing=false,master_width=64,gradient=chosen"
    assert short_name(text) == "16 trees d11 l2 r64 + 64 dense chosen"
    assert short_name("peer:experts=25,top_k=4,rank=64,master_width=128") == "PEER 8 x 4 r64 + 128 dense"
    assert short_name("ultra:depth=6,trees=8") == "ultra 8 trees d6"
    assert short_name("dense:width=256,activation=gelu") == "dense:width=256"
