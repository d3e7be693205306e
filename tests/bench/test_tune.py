"""The report of launch sizes, on the GPU kernels as the interpreter runs them."""

import json

import pytest

from fastff.bench.settings import Settings
from fastff.bench.tune import SINGLE, changes, tune
from fastff.ops.triton.config import Config, config


def test_changes_are_of_sizes_that_there_are():
    every = changes()
    assert every[0] == {}
    assert all(hasattr(Config, name) for change in every for name in change)
    assert {(name, value) for change in every for name, value in change.items()} == {
        (name, value) for name, values in SINGLE.items() for value in values
    }


@pytest.mark.usefixtures("gpu_kernels")
def test_every_change_is_measured_or_says_why_not(tmp_path, capsys):
    before = config()
    tried = [{}, {"tile": 24}]  # which is no power of two
    found = tune(Settings(16, 16, depth=1), 70, tmp_path / "tune.json", tried, backward=True)
    assert json.loads((tmp_path / "tune.json").read_text()) == found
    assert len(found["rows"]) == 6
    for row in found["rows"]:
        assert (row["seconds"] is None) == (row.get("tile") == 24) == (row["reason"] is not None)
    assert "as it is" in capsys.readouterr().out
    assert config() == before
