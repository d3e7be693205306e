"""The report of launch sizes, on the GPU kernels as the interpreter runs them."""

import itertools
import json
from dataclasses import asdict

import pytest

from fastff.bench.passes import BACKWARD, FORWARD
from fastff.bench.settings import Settings
from fastff.bench.tune import LAUNCHES, LEARNED, SIZES, changes, to_json, tune
from fastff.ops.triton.config import config, use_config


@pytest.mark.parametrize("kind", [FORWARD, BACKWARD])
def test_changes_are_of_sizes_that_there_are(kind):
    first, *others = changes(kind)
    assert first == {}
    assert {len(change) for change in others} == {1}
    sizes = {"learned": LEARNED} if kind == BACKWARD else SIZES
    launches = {"gains", "outers"} if kind == BACKWARD else {"products", "sums"}
    assert {(name, value) for change in others for name, value in change.items()} == {
        *((name, value) for name, values in sizes.items() for value in values),
        *itertools.product(launches, LAUNCHES),
    }
    for change in others:
        with use_config(**change):
            assert to_json(change).items() <= asdict(config()).items()


@pytest.mark.usefixtures("gpu_kernels")
def test_every_change_is_measured_or_says_why_not(tmp_path, capsys):
    before = config()
    tried = [{}, {"tile": 24}]  # which is no power of two
    found = tune(Settings(16, 16, depth=1), 70, tmp_path / "tune.json", backward=True, tried=tried)
    assert json.loads((tmp_path / "tune.json").read_text()) == found
    assert len(found["rows"]) == 6
    for row in found["rows"]:
        assert (row["seconds"] is None) == (row["change"].get("tile") == 24) == (row["reason"] is not None)
    assert "as it is" in capsys.readouterr().out
    assert config() == before
