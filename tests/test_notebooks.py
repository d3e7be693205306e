"""The notebooks of the documentation run, cell after cell, and come to what their texts say."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


@pytest.fixture(autouse=True)
def as_found(monkeypatch):
    """Pictures are drawn into memory, and what a notebook sets is set back."""
    threads, backend = torch.get_num_threads(), matplotlib.get_backend()
    matplotlib.use("Agg")
    yield
    torch.set_num_threads(threads)
    matplotlib.use(backend)
    matplotlib.pyplot.close("all")


def run(name: str) -> dict[str, Any]:
    """The names that the notebook leaves behind."""
    names: dict[str, Any] = {}
    for i, cell in enumerate(json.loads((NOTEBOOKS / name).read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {i}", "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore")
def test_digits():
    names = run("digits.ipynb")
    assert names["before"] > 0.9
    assert abs(names["after"] - names["before"]) < 0.02


@pytest.mark.filterwarnings("ignore")
def test_decoder():
    names = run("decoder.ipynb")
    assert names["loaded"].model.layers[0].mlp.int8 is not None
    assert names["exact"] < 4
